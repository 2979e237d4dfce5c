//! Spellings of a key that the log may mean by another one: a trigger may log `lower(slug)`, or a text without its padding,
//! where the program asks for the text as it stands in the row.

use std::borrow::Cow;

/// The text without its case and without blanks at its ends. Keys that are equal so share a bucket.
///
/// Upper case in between, for some letters have two lower ones: `ς` and `σ`, or `ß` and `ss`. And lower case before that, for `ẞ` is
/// its own upper case, and `ß` is not.
pub(crate) fn folded(text: &str) -> Cow<'_, str> {
    let trimmed = text.trim();
    if trimmed.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
        return Cow::Borrowed(trimmed);
    }
    let lower = trimmed.chars().flat_map(char::to_lowercase);
    Cow::Owned(lower.flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect())
}

/// Whether the log may name a key in another spelling. An eviction by that one misses it, so each hit asks its bucket.
pub(crate) fn is_spelled_otherwise(text: &str) -> bool {
    folded(text) != text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_that_a_database_may_take_for_one_another_are_one() {
        for (one, other) in [
            ("prod-61", "Prod-61"),
            ("PROD-61", "Prod-61"),
            ("pt", "PT      "),
            ("straße", "STRASSE"),
            ("straße", "STRAẞE"),
            ("ὀδυσσεύς", "ὈΔΥΣΣΕΎΣ"),
            ("é", "É"),
            ("ﬁ", "FI"),
        ] {
            assert_eq!(folded(one), folded(other));
        }
        assert_ne!(folded("prod-61"), folded("prod-62"));
        assert_ne!(folded("a b"), folded("ab"));
    }

    #[test]
    fn folding_twice_changes_nothing_more() {
        for text in (0..=u32::from(char::MAX)).filter_map(char::from_u32) {
            let text = text.to_string();
            assert_eq!(folded(&folded(&text)), folded(&text), "{text:?}");
        }
    }
}
