//! Plots on one page: what `perto replay` and the benches leave for people to look at and to show around.
//!
//! A page is one file of HTML with its drawings in it as SVG. It asks for nothing from anywhere, runs nothing, is readable in
//! light and in dark, on a phone and on paper, and has each figure of a drawing in a table below it. Series differ by dash,
//! marker and name, not by colour alone.
//!
//! It is no chart library: it draws what the reports here need.

mod axis;
mod chart;
mod page;
mod shapes;

pub use axis::{Axis, time_text};
pub use chart::{Band, Chart, Lane, Series, Stroke};
pub use page::{Page, Table, check};

/// Text as it may stand in HTML, between tags and within quotes. What names are made of is anybody's: nothing of it is
/// markup, and nothing of it turns around what is written beside it.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                safe.push(char::REPLACEMENT_CHARACTER);
            }
            c if c.is_control() && c != '\n' => safe.push(char::REPLACEMENT_CHARACTER),
            c => safe.push(c),
        }
    }
    safe
}

/// 1234567 as 1,234,567.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_name_is_markup() {
        for (text, safe) in [
            ("a < b & \"c\"", "a &lt; b &amp; &quot;c&quot;"),
            ("<script>alert('x')", "&lt;script&gt;alert(&#39;x&#39;)"),
            ("tab\there\u{202e}\u{0}", "tab\u{fffd}here\u{fffd}\u{fffd}"),
            ("café 東京\nand more", "café 東京\nand more"),
        ] {
            assert_eq!(escaped(text), safe);
        }
    }
}
