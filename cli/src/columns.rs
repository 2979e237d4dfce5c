//! Text for terminals of a hundred columns.

pub(super) const WIDTH: usize = 100;

/// Breaks a text into lines of at most so many characters, between words. A word that is longer stands alone.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Rows under a head, each column as wide as its widest cell; the last one is broken where the line would get too long.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let last = head.len().saturating_sub(1);
    let widths: Vec<usize> = (0..last)
        .map(|at| rows.iter().map(|row| row[at].chars().count()).chain([head[at].len()]).max().unwrap_or(0))
        .collect();
    let indent = widths.iter().map(|width| width + 2).sum::<usize>();
    let mut lines = Vec::new();
    for row in
        std::iter::once(head.iter().map(|cell| (*cell).to_owned()).collect()).chain(rows.iter().cloned())
    {
        let row: Vec<String> = row;
        let mut line: String =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        let mut rest = wrapped(&row[last], WIDTH.saturating_sub(indent).max(20)).into_iter();
        line.push_str(&rest.next().unwrap_or_default());
        lines.push(line.trim_end().to_owned());
        lines.extend(rest.map(|more| format!("{:indent$}{more}", "")));
    }
    lines
}

/// A time as people say it: the two greatest of its units.
pub(super) fn time(time: std::time::Duration) -> String {
    let seconds = time.as_secs();
    let two = |great: u64, unit: &str, small: u64, of_it: &str| match small {
        0 => format!("{great} {unit}"),
        _ => format!("{great} {unit} {small} {of_it}"),
    };
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..60 => format!("{seconds} s"),
        60..3_600 => two(seconds / 60, "min", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// Bytes as people say them.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{} KiB", bytes / 1_024),
        1_048_576..1_073_741_824 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}

/// A word for a shell, in quotes where it needs them.
pub(super) fn shell(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./:=@%+".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_keeps_to_its_width_and_its_columns() {
        let rows = [vec!["a".to_owned(), "word ".repeat(40)], vec!["longer".to_owned(), "end".to_owned()]];
        let lines = table(&["ONE", "TWO"], &rows);
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{lines:#?}");
        assert_eq!((lines[0].as_str(), lines.last().unwrap().as_str()), ("ONE     TWO", "longer  end"));
        assert!(lines[2].starts_with("        word"), "{lines:#?}");
    }

    #[test]
    fn words_for_a_shell_are_quoted_where_they_must_be() {
        for (word, quoted) in
            [("public.items", "public.items"), ("a || 'b'", r"'a || '\''b'\'''"), ("", "''"), ("$x", "'$x'")]
        {
            assert_eq!(shell(word), quoted);
        }
    }
}
