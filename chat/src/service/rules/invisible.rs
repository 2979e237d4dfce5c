//! Characters that nobody sees. Copying from a page, a chat or an address book brings them along: they are taken out.
//!
//! Some of them turn the text around them or hide a part of it, so two names that look alike would be two.

use std::borrow::Cow;

/// Of a letter's or a picture's own spelling: joiners, variants of a character, and what makes a flag of a region.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Joins,
    Tags,
    Nothing,
}

const FLAG: char = '\u{1f3f4}';
/// The first script that joiners have a meaning in; pictures are behind it too.
const JOINED: char = '\u{590}';
/// Most of them behind one character: a picture has a variant and a joiner.
const IN_A_ROW: usize = 2;

const fn kind(c: char) -> Option<Kind> {
    match c {
        '\u{34f}' | '\u{200c}' | '\u{200d}' | '\u{fe00}'..='\u{fe0f}' | '\u{e0100}'..='\u{e01ef}' => {
            Some(Kind::Joins)
        }
        '\u{e0020}'..='\u{e007f}' => Some(Kind::Tags),
        '\u{ad}'
        | '\u{61c}'
        | '\u{180e}'
        | '\u{200b}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{3164}'
        | '\u{feff}'
        | '\u{ffa0}'
        | '\u{fff9}'..='\u{fffb}'
        | '\u{e0000}'..='\u{e001f}' => Some(Kind::Nothing),
        _ => None,
    }
}

/// Without any of them, and without the white space around it.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(|c| kind(c).is_some()) {
        return Cow::Borrowed(text.trim());
    }
    let seen: String = text.chars().filter(|c| kind(*c).is_none()).collect();
    Cow::Owned(seen.trim().to_owned())
}

/// Without those that no script needs: a joiner stays behind a character that it can join, as in Persian, in the scripts
/// of India and in pictures of several people.
pub(super) fn written(text: &str) -> Cow<'_, str> {
    if !text.contains(|c| kind(c).is_some()) {
        return Cow::Borrowed(text.trim());
    }
    let (mut seen, mut last, mut row) = (String::with_capacity(text.len()), '\0', 0);
    for c in text.chars() {
        let stays = match kind(c) {
            None => true,
            Some(Kind::Joins) => last >= JOINED && !last.is_whitespace() && last != c && row < IN_A_ROW,
            Some(Kind::Tags) => last == FLAG || kind(last) == Some(Kind::Tags),
            Some(Kind::Nothing) => false,
        };
        if stays {
            row = if kind(c) == Some(Kind::Joins) { row + 1 } else { 0 };
            seen.push(c);
            last = c;
        }
    }
    Cow::Owned(seen.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_sees_is_taken_out() {
        for text in [
            "\u{202a}Ann\u{202c}",
            "A\u{200b}nn",
            "\u{feff}Ann \u{200e}",
            "An\u{ad}n",
            "\u{2066}An\u{2060}n\u{2069}",
            "Ann\u{3164}",
            "An\u{200d}n",
            "An\u{200c}n\u{fe0f}",
            "Ann\u{e0041}\u{e0042}",
        ] {
            assert_eq!((plain(text).as_ref(), written(text).as_ref()), ("Ann", "Ann"), "{text:?}");
        }
        assert_eq!(written("Ann \u{202e}nnA"), "Ann nnA");
        assert!(matches!(written(" Ann "), Cow::Borrowed("Ann")));
    }

    #[test]
    fn what_a_script_needs_stays() {
        for name in [
            "علی\u{200c}رضا",
            "അവന\u{d4d}\u{200d}",
            "ශ\u{dca}\u{200d}රී",
            "👩\u{200d}👩\u{200d}👧",
            "❤\u{fe0f}\u{200d}🔥 Ann",
            "葛\u{e0100}城",
            "🏴\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}",
        ] {
            assert_eq!(written(name), name, "{name:?}");
        }
        let many = format!("علی{}رضا", "\u{200c}\u{200d}".repeat(50));
        assert_eq!(written(&many).chars().count(), 8, "and no more than that");
    }
}
