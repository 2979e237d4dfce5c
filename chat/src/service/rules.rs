//! What a contact's fields must be. Pure: the same text has the same answer on every instance, whatever is stored.
//!
//! Text from anywhere is fine: nothing here panics, and what is longer than any good value is refused before it is
//! looked into. White space around a value is not part of it, and neither is what nobody sees.

use std::borrow::Cow;
use std::fmt;

use email_address::{EmailAddress, Options};
use rlibphonenumber::{PHONE_NUMBER_UTIL, ParseError, PhoneNumberFormat, Region};

pub(crate) use invisible::plain;

mod damaged;
mod invisible;

/// Characters: 15 digits, with whatever people write between and around them.
const MAX_PHONE: usize = 64;
/// E.164, its plus included.
const MAX_E164: usize = 16;
const MAX_EMAIL: usize = 254;
const MAX_NAME: usize = 200;

/// What is wrong with a field. There are few of them, and their texts stay: imports count by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flaw {
    pub(crate) field: &'static str,
    pub(crate) wrong: &'static str,
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.wrong)
    }
}

/// A phone number as E.164; one without a country code is of `region`, as ISO 3166-1 writes it.
///
/// The library takes what it can for digits, and leaves out the rest. A number that it would not take as a whole is none.
pub(crate) fn phone(text: &str, region: &str) -> Result<String, Flaw> {
    let flaw = |wrong| Err(Flaw { field: "phone", wrong });
    let text = text.trim();
    if text.len() > MAX_PHONE * 4 || text.chars().count() > MAX_PHONE {
        return flaw("is longer than any phone number");
    }
    let text = damaged::bare(text);
    if text.is_empty() {
        return flaw("is missing");
    }
    if let Some(wrong) = damaged::how(&text) {
        return flaw(wrong);
    }
    let found = PHONE_NUMBER_UTIL.parse(&text, Region::from_code(region).ok());
    if found.as_ref().is_ok_and(|number| number.extension.is_some()) {
        return flaw("has an extension, and only the number itself can be kept: leave it out");
    }
    if has_letters(&text) {
        return flaw("has letters between or behind its digits: write digits alone");
    }
    let number = match found {
        Ok(number) => number,
        Err(ParseError::InvalidCountryCode) => return flaw("has no country code that is in use"),
        Err(_) => return flaw("is not a phone number"),
    };
    if !number.is_valid() {
        return flaw("is not a phone number of any country");
    }
    let e164 = number.format_as(PhoneNumberFormat::E164).into_owned();
    // A few plans allow more digits than E.164 does.
    if e164.len() > MAX_E164 {
        return flaw("is longer than any phone number");
    }
    Ok(e164)
}

/// Whether a letter comes behind the first digit: the library would leave it out, or take a word for the digits of its
/// keys. An `x` stands for any carrier: `0xx11`.
fn has_letters(text: &str) -> bool {
    let number = text.trim_start_matches(|c: char| !c.is_numeric());
    let number = number.split(";phone-context=").next().unwrap_or(number);
    number.contains(|c: char| c.is_alphabetic() && !matches!(c, 'x' | 'X'))
}

/// A person's name, without what nobody sees in it.
pub(crate) fn name(text: &str) -> Result<Cow<'_, str>, Flaw> {
    let flaw = |wrong| Err(Flaw { field: "name", wrong });
    let text = invisible::written(text);
    if !(1..=MAX_NAME).contains(&text.chars().count()) {
        return flaw("must have 1 to 200 characters");
    }
    if text.contains(is_control) {
        return flaw("must not have control characters");
    }
    Ok(text)
}

/// An e-mail address that others can send to: no display name, no IP address, a domain with a dot.
pub(crate) fn email(text: &str) -> Result<Cow<'_, str>, Flaw> {
    let flaw = |wrong| Err(Flaw { field: "email", wrong });
    let text = invisible::plain(text);
    if text.len() > MAX_EMAIL {
        return flaw("is longer than 254 bytes");
    }
    let options = Options::default().without_display_text().without_domain_literal().with_required_tld();
    let spaced = text.contains(|c: char| is_control(c) || (c.is_whitespace() && c != ' '));
    if spaced || EmailAddress::parse_with_options(&text, options).is_err() {
        return flaw("is not an e-mail address");
    }
    Ok(text)
}

/// Those that end a line or a paragraph are among them.
pub(crate) fn is_control(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_phone_number_is_the_same_however_it_is_written() {
        for (text, region) in [
            ("+351912345678", "DE"),
            (" 912 345 678\t", "PT"),
            ("00351 912-345-678", "PT"),
            ("tel:+351-912-345-678", "US"),
            ("+351 (91) 234 56 78", "??"),
        ] {
            assert_eq!(phone(text, region).as_deref(), Ok("+351912345678"), "{text} {region}");
        }
        assert_eq!(phone("(212) 555-2368", "US").as_deref(), Ok("+12125552368"));
    }

    #[test]
    fn what_is_no_phone_number_is_said() {
        let long = "1".repeat(65);
        for (text, region, says) in [
            ("", "PT", "is missing"),
            ("  ", "PT", "is missing"),
            ("abc", "PT", "is not a phone number"),
            ("12", "PT", "of any country"),
            ("912 345 678", "??", "country code"),
            ("+999 1234567", "PT", "country code"),
            ("+351 000 000 000", "PT", "of any country"),
            (long.as_str(), "PT", "is longer"),
        ] {
            let flaw = phone(text, region).unwrap_err();
            assert!(flaw.field == "phone" && flaw.wrong.contains(says), "{text}: {flaw}");
        }
    }

    #[test]
    fn names_and_addresses_are_looked_at_as_a_whole() {
        assert_eq!(name(" Ann Ódé 東京 ").as_deref(), Ok("Ann Ódé 東京"));
        assert!(name(&"é".repeat(200)).is_ok() && name(&"é".repeat(201)).is_err());
        for bad in ["", " ", "\u{200b}", "a\0b", "a\u{7f}", "a\u{85}b", "a\nb", "a\u{2028}b"] {
            assert_eq!(name(bad).unwrap_err().field, "name", "{bad:?}");
        }
        assert_eq!(email(" ann@example.com\r").as_deref(), Ok("ann@example.com"));
        let long = format!("{}@example.com", "a".repeat(250));
        for bad in [
            "",
            "ann",
            "ann@",
            "@b.com",
            "ann@local",
            "a@b@c.com",
            "Ann <a@b.com>",
            "a@[127.0.0.1]",
            "a\u{a0}n@b.com",
            &long,
        ] {
            assert_eq!(email(bad).unwrap_err().field, "email", "{bad:?}");
        }
    }

    #[test]
    fn a_number_that_a_spreadsheet_changed_is_nobodys() {
        for (text, region) in [
            ("3.10820712E9", "US"),
            ("3.1082071290E9", "US"),
            ("1701234567.0", "DE"),
            ("1701234567,0", "DE"),
            ("9.87654321E9", "IN"),
            ("9876543210.0", "IN"),
            ("1.19876543E10", "BR"),
            ("1,19876543E+10", "BR"),
            ("11987654321,0", "BR"),
            ("3.10820712e+09", "US"),
            ("\u{200e}3.10820712\u{200b}E9", "US"),
            ("３．１０８２０７１２Ｅ９", "US"),
            ("=\"3.10820712E9\"", "US"),
            ("2024-03-12", "DK"),
            ("21-12-2005", "DK"),
        ] {
            let flaw = phone(text, region).unwrap_err();
            assert!(flaw.wrong.contains("format the column as text"), "{text} {region}: {flaw}");
        }
    }

    #[test]
    fn a_number_that_would_not_be_taken_as_a_whole_is_none() {
        for (text, region, says) in [
            ("%2B351912345678", "DE", "letters"),
            ("030 1234567 Bob", "DE", "letters"),
            ("030 123456 (casa)", "DE", "letters"),
            ("1-800-FLOWERS", "US", "letters"),
            ("91234567O8", "IN", "letters"),
            ("9१२３4567l08", "IN", "letters"),
            ("+1 212 555 2368 ext. 5", "US", "extension"),
            ("tel:+1-212-555-2368;ext=5", "PT", "extension"),
            ("212 555 2368 x5", "US", "extension"),
            ("212 555 2368,,5", "US", "extension"),
            ("912 345 678 доб. 5", "RU", "extension"),
        ] {
            let flaw = phone(text, region).unwrap_err();
            assert!(flaw.wrong.contains(says), "{text}: {flaw}");
        }
    }

    #[test]
    fn what_nobody_sees_in_a_number_does_not_matter() {
        for hidden in [
            '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}',
            '\u{2067}', '\u{2068}', '\u{2069}', '\u{fe0d}', '\u{fe0f}', '\u{a0}', '\u{ad}', '\u{200b}',
            '\u{200c}', '\u{200d}', '\u{2060}', '\u{feff}', '\u{61c}', '\u{202f}',
        ] {
            let number = format!("{hidden}+351{hidden}912{hidden}345678{hidden}");
            assert_eq!(phone(&number, "DE").as_deref(), Ok("+351912345678"), "{hidden:?}");
            let address = format!("{hidden}ann{hidden}@example.com{hidden}");
            let seen = email(&address);
            assert!(
                seen.as_deref() == Ok("ann@example.com") || hidden.is_whitespace(),
                "{hidden:?}: {seen:?}"
            );
        }
        let wide = "（＋３５１）　９１２　３４５　６７８　　　　　　　　　　　　";
        assert_eq!(phone(wide, "DE").as_deref(), Ok("+351912345678"));
        let full =
            "９　１　２　３　４　５　６　７　８　　　　　　　　　　　　　　．".to_owned() + &"　".repeat(20);
        assert_eq!(phone(&full, "PT").as_deref(), Ok("+351912345678"), "64 characters and not 64 bytes");
        assert_eq!(phone("'+351912345678", "DE").as_deref(), Ok("+351912345678"));
        assert_eq!(phone("=\"+351912345678\"", "DE").as_deref(), Ok("+351912345678"));
        assert_eq!(phone("(0xx11) 98765-4321", "BR").as_deref(), Ok("+5511987654321"));
        assert_eq!(phone("tel:912-345-678;phone-context=+351", "DE").as_deref(), Ok("+351912345678"));
        assert_eq!(phone("912.345.678", "PT").as_deref(), Ok("+351912345678"));
    }

    #[test]
    fn two_names_that_look_alike_are_one() {
        for text in ["\u{202a}Ann\u{202c}", "A\u{200b}nn", "Ann\u{200e}", "\u{202e}Ann", "Ann\u{2069}"] {
            assert_eq!(name(text).as_deref(), Ok("Ann"), "{text:?}");
        }
        assert_eq!(name("علی\u{200c}رضا").as_deref(), Ok("علی\u{200c}رضا"));
    }

    proptest! {
        #[test]
        fn a_quantity_is_no_phone_number(
            sign in "[+-]?",
            whole in "[0-9]{0,12}",
            fraction in "[0-9]{1,12}",
            exponent in prop_oneof!["", "[eE][+-]?[0-9]{1,2}"],
            point in "[.,]",
            region in prop_oneof!["US", "DE", "IN", "BR", "PT", "IT", "DK"],
            hidden in "[\u{200e}\u{200b}\u{fe0f}]?",
        ) {
            let texts = [
                format!("{sign}{whole}{point}{hidden}{fraction}{exponent}"),
                format!("{sign}{whole}{fraction}{exponent}"),
            ];
            prop_assert!(phone(&texts[0], &region).is_err(), "{}", texts[0]);
            prop_assert!(exponent.is_empty() || phone(&texts[1], &region).is_err(), "{}", texts[1]);
        }

        #[test]
        fn no_text_is_too_strange(text in any::<String>(), digits in "[+0-9 ();=,.x/-]{0,120}", region in "[A-Z]{0,3}") {
            for text in [&text, &digits, &format!("+{text}"), &format!("tel:{digits};ext={text}")] {
                if let Ok(found) = phone(text, &region) {
                    prop_assert!(found.len() <= MAX_E164 && found.starts_with('+'), "{found}");
                    prop_assert!(found[1..].bytes().all(|b| b.is_ascii_digit()) && !found.starts_with("+0"));
                    prop_assert_eq!(phone(&found, &region), Ok(found), "what was found stays what it is");
                }
                if let Ok(found) = name(text) {
                    prop_assert!((1..=200).contains(&found.chars().count()));
                    prop_assert_eq!(name(&found), Ok(found.clone()), "what was kept stays what it is");
                }
                if let Ok(found) = email(text) {
                    prop_assert!((3..=254).contains(&found.len()));
                }
            }
        }
    }
}
