//! What commands read from their arguments and write to the terminal.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use clap::builder::Resettable;

/// What this process was called with. A variable that is set and empty is as good as not set.
#[must_use]
pub fn read<C: Parser>() -> C {
    let matches = without_empty(C::command()).get_matches();
    C::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn without_empty(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| if arg.get_env().is_some_and(is_empty) { arg.env(Resettable::Reset) } else { arg })
        .mut_subcommands(without_empty)
}

/// How a command ended, for the shell, and for a person what went wrong.
#[must_use]
pub fn ended(program: &str, outcome: &anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(program, error);
            ExitCode::FAILURE
        }
    }
}

/// A time, as it is written in arguments.
///
/// # Errors
/// What it should look like.
pub fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 4] = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3_600.0)];
    let read = || {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = text[..digits].parse().ok()?;
        let (_, unit) = UNITS.iter().find(|(unit, _)| *unit == &text[digits..])?;
        Duration::try_from_secs_f64(number * unit).ok().filter(|time| *time <= Duration::from_hours(24 * 365))
    };
    read().ok_or_else(|| format!("{text:?} is no time; like 250ms, 2s, 5m or 1h"))
}

/// One line for a person: what is wrong, and why.
pub fn complain(program: &str, error: &anyhow::Error) {
    say_error(&format!("{program}: {}", one_line(error)));
}

/// An error and its causes.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let of_server = said(cause);
        let is_last = of_server.is_some();
        let cause = of_server.unwrap_or_else(|| cause.to_string()).replace('\n', " ");
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
        if is_last {
            break;
        }
    }
    text
}

/// What Postgres said, without the client's words around it: that a server refused, and on which line of its own source code.
fn said(cause: &(dyn std::error::Error + 'static)) -> Option<String> {
    let cause = cause.downcast_ref::<perto::Cause>().map_or(cause, |shared| &**shared);
    let of_server = cause.downcast_ref().and_then(sqlx::Error::as_database_error);
    of_server.map(|error| error.message().to_owned())
}

/// Writes a line to standard output. That nobody reads any more is no reason to fail.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{}", printable(line)));
}

/// Writes a line to standard error.
pub fn say_error(line: &str) {
    let mut out = std::io::stderr().lock();
    drop(writeln!(out, "{}", printable(line)));
}

/// What servers call things and answer is anybody's text, and a terminal obeys it: nothing goes there that moves the
/// cursor, or turns what is written around. As JSON writes it, so that JSON stays what it is.
fn printable(line: &str) -> Cow<'_, str> {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !line.contains(obeyed) {
        return Cow::Borrowed(line);
    }
    let mut shown = String::with_capacity(line.len() + 16);
    for c in line.chars() {
        if obeyed(c) {
            shown.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        for (text, shown) in [
            ("café, 東京 'x'", "café, 東京 'x'"),
            ("a\u{1b}[2J\u{1b}]0;x\u{7}b", r"a\u001b[2J\u001b]0;x\u0007b"),
            ("one\r\ntwo\tthree\u{7f}", r"one\u000d\u000atwo\u0009three\u007f"),
            ("\u{9b}31m, \u{202e}live\u{2066}", r"\u009b31m, \u202elive\u2066"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }

    #[test]
    fn json_says_the_same_when_it_is_printed() {
        let json = serde_json::json!({ "a": "\u{1b}[2J\u{9b}31m\u{202e}\u{7f}\n" });
        let text = json.to_string();
        let printed = printable(&text);
        assert_ne!(printed, text);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&printed).unwrap(), json);
    }
}
