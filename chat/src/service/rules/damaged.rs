//! Phone numbers that were changed before they came: by spreadsheets, which take them for quantities and for dates.
//!
//! Some of what they make of a number is a valid number of somebody else: `3.10820712E9` has lost its zeros, and reads as
//! a number of ten digits. Nobody can tell what it was, so it is refused, and what to do is said.

use super::invisible;

const EXPONENT: &str = "has an exponent, so digits of it are lost: format the column as text in the spreadsheet, and export it again";
const FRACTION: &str =
    "has a decimal point or comma, like a quantity: format the column as text in the spreadsheet";
const GROUPED: &str = "has commas or apostrophes between its digits, like a quantity: format the column as text in the spreadsheet";
const CUT: &str = "was cut to 15 digits, as spreadsheets do: format the column as text in the spreadsheet, and enter it again";
const DATE: &str = "is a date: format the column as text in the spreadsheet, and enter the number again";

/// Digits that a spreadsheet keeps of a number.
const KEPT: usize = 15;

/// What people and programs put around a number to make a text of it, taken off: `'912…`, `="912…"`, `tel:912…`. Signs
/// of full width, and of Arabic, are those of ASCII.
pub(super) fn bare(text: &str) -> String {
    let text: String = invisible::plain(text).chars().map(ascii).collect();
    let text = text.trim_start_matches(['\'', '’']).trim_start();
    let text = text.strip_prefix('=').unwrap_or(text);
    let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    quoted.unwrap_or(text).trim().to_owned()
}

fn ascii(c: char) -> char {
    let digit = |zero: char| char::from_digit(u32::from(c) - u32::from(zero), 10).unwrap_or(c);
    match c {
        '\u{ff01}'..='\u{ff5e}' => char::from_u32(u32::from(c) - 0xfee0).unwrap_or(c),
        '\u{660}'..='\u{669}' => digit('\u{660}'),
        '\u{6f0}'..='\u{6f9}' => digit('\u{6f0}'),
        '\u{66b}' => '.',
        '\u{66c}' => ',',
        '\u{2212}' => '-',
        c if c.is_whitespace() => ' ',
        c => c,
    }
}

/// What was done to a number that is [`bare`].
pub(super) fn how(text: &str) -> Option<&'static str> {
    let text = text.strip_prefix("tel:").unwrap_or(text);
    if is_exponent(text) {
        return Some(EXPONENT);
    }
    if is_date(text) {
        return Some(DATE);
    }
    let number = text.trim_start_matches(['+', '-']);
    if is_fraction(number) {
        return Some(FRACTION);
    }
    if between_digits(number, |c| matches!(c, ',' | '\'' | '’')) {
        return Some(GROUPED);
    }
    let zeros = number.len() - number.trim_end_matches('0').len();
    let cut = number.len() > KEPT && number.len() - KEPT <= zeros && is_digits(number);
    (cut && !number.starts_with('0')).then_some(CUT)
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.chars().all(char::is_numeric)
}

fn between_digits(text: &str, is: impl Fn(char) -> bool) -> bool {
    let chars: Vec<char> = text.chars().collect();
    chars.windows(3).any(|of| of[0].is_numeric() && is(of[1]) && of[2].is_numeric())
}

/// `3.1E9`, `3,1e+09`, `3.1 × 10^9`.
fn is_exponent(text: &str) -> bool {
    let power = |mark| text.split_once(mark).is_some_and(|(before, _)| before.contains(char::is_numeric));
    let of_ten = text.match_indices(['e', 'E']).any(|(at, _)| {
        let (before, after) = (&text[..at], text[at + 1..].trim_start_matches(['+', '-']));
        before.ends_with(|c: char| c.is_numeric() || c == '.' || c == ',')
            && after.starts_with(char::is_numeric)
    });
    of_ten || power("10^") || power("×")
}

/// One point or comma whose right side is a fraction: nothing but digits is around it, or nothing but zeros behind it, or
/// thousands before it.
fn is_fraction(number: &str) -> bool {
    let Some(at) = number.rfind(['.', ',']) else { return false };
    let (whole, fraction) = (&number[..at], &number[at + 1..]);
    let once = !whole.contains(&number[at..=at]);
    let plain = whole.is_empty() || is_digits(whole);
    let cents = fraction.len() <= 2 && is_in_thousands(whole);
    once && is_digits(fraction) && (plain || cents || fraction.bytes().all(|b| b == b'0'))
}

fn is_in_thousands(whole: &str) -> bool {
    let mut groups = whole.split([' ', '.', ',', '\'', '’', '_']);
    let first = groups.next().unwrap_or_default();
    let rest: Vec<&str> = groups.collect();
    is_digits(first)
        && (1..=3).contains(&first.chars().count())
        && !rest.is_empty()
        && rest.iter().all(|group| is_digits(group) && group.chars().count() == 3)
}

/// `2024-03-12`, `12.03.2024`, `12/3/2024`, with or without a time.
fn is_date(text: &str) -> bool {
    let day = match text.split_once([' ', 'T']) {
        Some((day, time)) if time.contains(':') => day,
        Some(_) => return false,
        None => text,
    };
    ['-', '/', '.'].iter().any(|between| {
        let parts: Option<Vec<u16>> = day.split(*between).map(|part| part.parse().ok()).collect();
        let Some([first, month, last]) = parts.as_deref() else { return false };
        let is_year = |year: &u16| (1900..=2099).contains(year);
        let (year, day) = if is_year(first) { (first, last) } else { (last, first) };
        let days = [*month, *day];
        is_year(year)
            && days.iter().all(|n| (1..=31).contains(n))
            && days.iter().any(|n| *n <= 12)
            && day_is_short(text)
    })
}

/// Three digits and more are no day.
fn day_is_short(text: &str) -> bool {
    text.split(|c: char| !c.is_ascii_digit()).all(|part| part.len() <= 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_spreadsheet_did_is_told() {
        for (text, said) in [
            ("3.10820712E9", EXPONENT),
            ("3,10820712e+09", EXPONENT),
            ("+1.19876543E10", EXPONENT),
            ("3.E9", EXPONENT),
            ("３．１Ｅ９", EXPONENT),
            ("=\"3.1E9\"", EXPONENT),
            ("1.19876543 × 10^10", EXPONENT),
            ("tel:1.2E9", EXPONENT),
            ("1701234567.0", FRACTION),
            ("1701234567,0", FRACTION),
            ("+351912345678.00", FRACTION),
            ("-1701234567.5", FRACTION),
            (".912345678", FRACTION),
            ("'1701234567.0", FRACTION),
            ("1.701.234.567,00", FRACTION),
            ("1,701,234,567.00", FRACTION),
            ("1 701 234 567,5", FRACTION),
            ("(0171) 1234567.0", FRACTION),
            ("١٧٠١٢٣٤٥٦٧٫٠", FRACTION),
            ("1,701,234,567", GROUPED),
            ("98,76,54,32,10", GROUPED),
            ("1'701'234'567", GROUPED),
            ("3519123456789000", CUT),
            ("351912345678900000", CUT),
            ("2024-03-12", DATE),
            ("12.03.2024", DATE),
            ("12/3/2024", DATE),
            ("2024-03-12 00:00:00", DATE),
            ("2024-03-12T00:00:00", DATE),
        ] {
            assert_eq!(how(&bare(text)), Some(said), "{text}");
        }
    }

    #[test]
    fn a_number_as_people_write_it_is_whole() {
        for text in [
            "912.345.678",
            "01.23.45.67.00",
            "912345678.",
            "00351 912 345 678",
            "0035191234567800000",
            "+49 171.1234567",
            "1.701.234.567",
            "20 24 03 12",
            "2024 0312",
            "555-12-2024",
            "912345678,,5",
            "912345678 ext 5",
            "='912345678'",
        ] {
            assert_eq!(how(&bare(text)), None, "{text}");
        }
    }
}
