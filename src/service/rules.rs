//! What a contact's fields must be. Pure: the same text has the same answer on every instance, whatever is stored.
//!
//! Text from anywhere is fine: nothing here panics, and what is longer than any good value is refused before it is
//! looked into. White space around a value is not part of it.

use std::fmt;

use email_address::{EmailAddress, Options};
use rlibphonenumber::{PHONE_NUMBER_UTIL, ParseError, PhoneNumberFormat, Region};

/// Bytes: 15 digits, with whatever people write between and around them.
const LONGEST_PHONE: usize = 64;
/// E.164, its plus included.
const LONGEST_E164: usize = 16;
const LONGEST_EMAIL: usize = 254;
const LONGEST_NAME: usize = 200;

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
pub(crate) fn phone(text: &str, region: &str) -> Result<String, Flaw> {
    let flaw = |wrong| Err(Flaw { field: "phone", wrong });
    let text = text.trim();
    if text.is_empty() {
        return flaw("is missing");
    }
    if text.len() > LONGEST_PHONE {
        return flaw("is longer than any phone number");
    }
    let number = match PHONE_NUMBER_UTIL.parse(text, Region::from_code(region).ok()) {
        Ok(number) => number,
        Err(ParseError::InvalidCountryCode) => return flaw("has no country code that is in use"),
        Err(_) => return flaw("is not a phone number"),
    };
    if !number.is_valid() {
        return flaw("is not a phone number of any country");
    }
    let e164 = number.format_as(PhoneNumberFormat::E164).into_owned();
    // A few plans allow more digits than E.164 does.
    if e164.len() > LONGEST_E164 {
        return flaw("is longer than any phone number");
    }
    Ok(e164)
}

/// A person's name.
pub(crate) fn name(text: &str) -> Result<&str, Flaw> {
    let flaw = |wrong| Err(Flaw { field: "name", wrong });
    let text = text.trim();
    if text.len() > LONGEST_NAME * 4 || !(1..=LONGEST_NAME).contains(&text.chars().count()) {
        return flaw("must have 1 to 200 characters");
    }
    if text.contains(char::is_control) {
        return flaw("must not have control characters");
    }
    Ok(text)
}

/// An e-mail address that others can send to: no display name, no IP address, a domain with a dot.
pub(crate) fn email(text: &str) -> Result<&str, Flaw> {
    let flaw = |wrong| Err(Flaw { field: "email", wrong });
    let text = text.trim();
    if text.len() > LONGEST_EMAIL {
        return flaw("is longer than 254 bytes");
    }
    let options = Options::default().without_display_text().without_domain_literal().with_required_tld();
    if text.contains(char::is_control) || EmailAddress::parse_with_options(text, options).is_err() {
        return flaw("is not an e-mail address");
    }
    Ok(text)
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
        assert_eq!(name(" Ann Ódé 東京 "), Ok("Ann Ódé 東京"));
        assert!(name(&"é".repeat(200)).is_ok() && name(&"é".repeat(201)).is_err());
        for bad in ["", " ", "a\0b", "a\u{7f}", "a\u{85}b", "a\nb"] {
            assert_eq!(name(bad).unwrap_err().field, "name", "{bad:?}");
        }
        assert_eq!(email(" ann@example.com\r"), Ok("ann@example.com"));
        let long = format!("{}@example.com", "a".repeat(250));
        for bad in
            ["", "ann", "ann@", "@b.com", "ann@local", "a@b@c.com", "Ann <a@b.com>", "a@[127.0.0.1]", &long]
        {
            assert_eq!(email(bad).unwrap_err().field, "email", "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in any::<String>(), digits in "[+0-9 ();=,.x/-]{0,120}", region in "[A-Z]{0,3}") {
            for text in [&text, &digits, &format!("+{text}"), &format!("tel:{digits};ext={text}")] {
                if let Ok(found) = phone(text, &region) {
                    prop_assert!(found.len() <= LONGEST_E164 && found.starts_with('+'), "{found}");
                    prop_assert!(found[1..].bytes().all(|b| b.is_ascii_digit()) && !found.starts_with("+0"));
                    prop_assert_eq!(phone(&found, &region), Ok(found), "what was found stays what it is");
                }
                if let Ok(found) = name(text) {
                    prop_assert!((1..=200).contains(&found.chars().count()));
                }
                if let Ok(found) = email(text) {
                    prop_assert!((3..=254).contains(&found.len()));
                }
            }
        }
    }
}
