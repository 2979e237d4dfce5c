//! Where records end in a stream of bytes, however it comes in pieces.
//!
//! CSV as RFC 4180 has it: a quoted field may hold line ends. A record that grows too long is given up at once, and
//! reading goes on at the next line: a quote that nobody closed costs [`LONGEST`] bytes, not the rest of the file.

use memchr::{memchr, memchr2};

use super::Format;

/// Longest record in bytes, its line end included.
pub(super) const LONGEST: usize = 64 * 1024;

/// What [`Scanner::scan`] came upon; each says how many of the bytes it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The end of a record, behind its line end.
    Record(usize),
    /// The record is longer than any: what follows of it is skipped.
    TooLong(usize),
    /// The end of what was skipped.
    Skipped(usize),
    /// Nothing: all bytes belong to what has not ended yet.
    More,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    FieldStart,
    Field,
    Quotes,
    /// Behind a quote inside quotes: it closes them, or another one follows and both are one of the text.
    Quote,
    Line,
    TooLong,
}

#[derive(Debug)]
pub(super) struct Scanner {
    format: Format,
    separator: u8,
    longest: usize,
    inside: Inside,
    /// Bytes of this record so far.
    len: usize,
    /// Line ends so far.
    lines: u64,
    /// Line of this record's first byte, counted from 1.
    line: u64,
}

impl Scanner {
    pub(super) fn new(format: Format) -> Self {
        let (longest, inside) = (LONGEST, Inside::Line);
        let mut scanner = Self { format, separator: b',', longest, inside, len: 0, lines: 0, line: 1 };
        scanner.begin();
        scanner
    }

    /// With this between its fields instead of a comma.
    pub(super) fn separated_by(self, separator: u8) -> Self {
        Self { separator, ..self }
    }

    /// For records that were found before: none is too long.
    pub(super) fn again(format: Format, first_line: u64) -> Self {
        let lines = first_line.saturating_sub(1);
        Self { longest: usize::MAX, lines, line: first_line, ..Self::new(format) }
    }

    /// Line of the first byte of the record that is being scanned.
    pub(super) const fn line(&self) -> u64 {
        self.line
    }

    /// Whether a record has begun that has not ended, and that is not skipped.
    pub(super) fn is_inside(&self) -> bool {
        self.len > 0 && self.inside != Inside::TooLong
    }

    /// Goes on from where it stopped.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Found {
        if self.inside == Inside::TooLong {
            let Some(at) = memchr(b'\n', bytes) else { return Found::More };
            self.lines += 1;
            self.begin();
            return Found::Skipped(at + 1);
        }
        let window = &bytes[..bytes.len().min(self.longest - self.len)];
        match self.end(window) {
            Some(end) => {
                self.begin();
                Found::Record(end)
            }
            None if window.len() < bytes.len() => {
                self.inside = Inside::TooLong;
                Found::TooLong(window.len())
            }
            None => {
                self.len += window.len();
                Found::More
            }
        }
    }

    fn begin(&mut self) {
        self.inside = if self.format == Format::Csv { Inside::FieldStart } else { Inside::Line };
        self.len = 0;
        self.line = self.lines + 1;
    }

    fn end(&mut self, window: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < window.len() {
            let rest = &window[at..];
            // What decides is at `skipped`; nothing before it does.
            let skipped = match self.inside {
                Inside::FieldStart | Inside::Quote => 0,
                Inside::Field => memchr2(self.separator, b'\n', rest)?,
                Inside::Quotes => memchr2(b'"', b'\n', rest)?,
                Inside::Line | Inside::TooLong => memchr(b'\n', rest)?,
            };
            at += skipped + 1;
            let byte = rest[skipped];
            self.lines += u64::from(byte == b'\n');
            self.inside = match (self.inside, byte) {
                (Inside::Quotes, b'"') => Inside::Quote,
                (Inside::Quotes, _) | (Inside::Quote | Inside::FieldStart, b'"') => Inside::Quotes,
                (_, b'\n') => return Some(at),
                (_, byte) if byte == self.separator => Inside::FieldStart,
                _ => Inside::Field,
            };
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The records of pieces: line, bytes, and whether it is one that was given up.
    fn records(format: Format, pieces: &[&[u8]]) -> Vec<(u64, Vec<u8>, bool)> {
        records_of(Scanner::new(format), pieces)
    }

    fn records_of(mut scanner: Scanner, pieces: &[&[u8]]) -> Vec<(u64, Vec<u8>, bool)> {
        let (mut found, mut record) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut rest = *piece;
            loop {
                let line = scanner.line();
                let taken = match scanner.scan(rest) {
                    Found::Record(end) => {
                        record.extend_from_slice(&rest[..end]);
                        found.push((line, std::mem::take(&mut record), false));
                        end
                    }
                    Found::TooLong(end) => {
                        record.extend_from_slice(&rest[..end]);
                        found.push((line, std::mem::take(&mut record), true));
                        end
                    }
                    Found::Skipped(end) => end,
                    Found::More => {
                        if scanner.is_inside() {
                            record.extend_from_slice(rest);
                        }
                        break;
                    }
                };
                rest = &rest[taken..];
            }
        }
        if scanner.is_inside() {
            found.push((scanner.line(), record, false));
        }
        found
    }

    fn csv(text: &str) -> Vec<(u64, String)> {
        let found = records(Format::Csv, &[text.as_bytes()]);
        found.into_iter().map(|(line, record, _)| (line, String::from_utf8(record).unwrap())).collect()
    }

    #[test]
    fn a_line_end_in_quotes_ends_no_record() {
        let found = csv("a,b\r\n\"x\ny\",\"say \"\"\n\"\"\"\n\nc\"d\ne\"\n\"\"\nlast");
        let expected = [
            (1, "a,b\r\n"),
            (2, "\"x\ny\",\"say \"\"\n\"\"\"\n"),
            (5, "\n"),
            (6, "c\"d\n"),
            (7, "e\"\n"),
            (8, "\"\"\n"),
            (9, "last"),
        ];
        assert_eq!(found, expected.map(|(line, text)| (line, text.to_owned())));
        let lines = records(Format::Ndjson, &[b"\"a\nb\"\n"]);
        assert_eq!(lines.len(), 2, "JSON has no line end in quotes");
    }

    #[test]
    fn a_record_that_is_too_long_is_given_up_and_the_next_line_is_read() {
        let open = format!("a\n\"{}b\nc\n", "x\n".repeat(LONGEST / 2));
        let found = records(Format::Csv, &[open.as_bytes()]);
        assert_eq!((found[1].0, found[1].1.len(), found[1].2), (2, LONGEST, true));
        let next: Vec<_> = found[2..].iter().map(|(line, record, _)| (*line, record.as_slice())).collect();
        let line = LONGEST as u64 / 2 + 2;
        assert_eq!(next, [(line, b"b\n".as_slice()), (line + 1, b"c\n")]);
        let fits = format!("{}\n", "x".repeat(LONGEST - 1));
        assert!(records(Format::Csv, &[fits.as_bytes()]).iter().all(|(.., too_long)| !too_long));
        let over = format!("x{fits}y");
        let found = records(Format::Ndjson, &[over.as_bytes()]);
        assert_eq!(
            found.iter().map(|(line, _, long)| (*line, *long)).collect::<Vec<_>>(),
            [(1, true), (2, false)]
        );
    }

    proptest! {
        #[test]
        fn any_split_into_pieces_has_the_same_records(
            text in "[a\",;\r\n]{0,60}",
            long in 0..3_usize,
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
            ndjson in any::<bool>(),
        ) {
            let format = if ndjson { Format::Ndjson } else { Format::Csv };
            let text = text.replacen('a', &"a".repeat([1, LONGEST - 1, LONGEST + 1][long]), 1);
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let whole = records(format, &[bytes]);
            prop_assert_eq!(&records(format, &pieces), &whole);
            if long == 0 {
                let all: Vec<u8> = whole.into_iter().flat_map(|(_, record, _)| record).collect();
                prop_assert_eq!(all, bytes, "no byte is lost");
            }
        }

        #[test]
        fn records_end_where_the_parser_ends_them(
            text in "[a\",;\t\r\n]{0,80}",
            separator in prop_oneof![Just(b','), Just(b';'), Just(b'\t')],
        ) {
            let mut builder = csv_core::ReaderBuilder::new();
            let mut parser = builder.delimiter(separator).terminator(csv_core::Terminator::Any(b'\n')).build();
            let scanner = Scanner::new(Format::Csv).separated_by(separator);
            for (_, record, _) in records_of(scanner, &[text.as_bytes()]) {
                let (result, read, ..) = parser.read_record(&record, &mut [0; 99], &mut [0; 99]);
                let ended = result == csv_core::ReadRecordResult::Record;
                // Empty lines are none for the parser. A last record may lack its end.
                prop_assert!(ended || record == b"\n" || record.last() != Some(&b'\n') || text.as_bytes().ends_with(&record));
                prop_assert_eq!(read, record.len());
            }
        }
    }
}
