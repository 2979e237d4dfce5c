//! A chunk of a file becomes what is to be written: contacts, each once, and rejects. Pure, and all of the work that
//! takes a processor's time.

use std::borrow::Cow;
use std::collections::BTreeMap;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder, Terminator};
use serde::Deserialize;

use super::Format;
use super::records::{Found, LONGEST, Scanner};
use crate::service::rules::{self, Flaw};

/// Bytes of a rejected record that are kept.
const KEPT: usize = 1024;
/// What a row of the rejects takes beside its texts: its head, the import, the line, and its entry in the index.
const ROW: usize = 120;
const BOM: &[u8] = b"\xef\xbb\xbf";

pub(super) const TOO_LONG: Flaw = Flaw { field: "record", wrong: "is longer than 64 KiB" };
const NOT_UTF8: Flaw = Flaw {
    field: "record",
    wrong: "is not UTF-8, but perhaps Windows-1252 or Latin-1: save the file as UTF-8",
};
const UTF16: Flaw = Flaw { field: "record", wrong: "is in UTF-16: save the file as UTF-8" };
const UNCLOSED: Flaw = Flaw { field: "record", wrong: "has a quote that is not closed" };
const FIELDS: Flaw = Flaw { field: "record", wrong: "has more or fewer fields than the header" };
const UNNAMED: Flaw = Flaw { field: "record", wrong: "has text in a column that the header does not name" };
const NOT_JSON: Flaw = Flaw { field: "record", wrong: "is not JSON" };
const SHAPE: Flaw =
    Flaw { field: "record", wrong: "is not an object of phone, name and email, each a text and once" };

/// What is known of an import where its chunks are worked on.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub(super) format: Format,
    /// What the columns are called, in their order; those at the end may have no name. For CSV.
    pub(super) columns: Vec<String>,
    /// What is between them.
    pub(super) separator: u8,
    pub(super) region: String,
}

/// What is to be written of a chunk. Contacts are in the order of their phones: imports that write the same ones at once
/// lock them in one order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) contacts: Vec<Contact>,
    pub(super) rejects: Vec<Reject>,
    /// Records that became contacts: several may be one contact.
    pub(super) accepted: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Contact {
    pub(super) phone: String,
    pub(super) name: Option<String>,
    pub(super) email: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reject {
    pub(super) line: u64,
    pub(super) flaw: Flaw,
    pub(super) record: String,
}

impl Reject {
    pub(super) fn new(line: u64, flaw: Flaw, record: &[u8]) -> Self {
        let end = record.strip_suffix(b"\n").unwrap_or(record);
        let end = end.strip_suffix(b"\r").unwrap_or(end);
        let mut text = String::from_utf8_lossy(&end[..end.len().min(KEPT)]).replace('\0', "");
        // What is no text takes more than it came with.
        let fitting = text.floor_char_boundary(KEPT);
        if end.len() > KEPT || fitting < text.len() {
            text.truncate(fitting);
            text.push('…');
        }
        Self { line, flaw, record: text }
    }

    /// What it takes in Postgres, about.
    pub(super) fn bytes(&self) -> i64 {
        let text = self.record.len() + self.flaw.to_string().len();
        i64::try_from(text + ROW).unwrap_or(i64::MAX)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    phone: Option<String>,
    name: Option<String>,
    email: Option<String>,
}

/// Works through the records of a chunk.
pub(super) fn batch(shape: &Shape, first_line: u64, data: &[u8]) -> Batch {
    let mut batch = Batch::default();
    let mut contacts = BTreeMap::new();
    let mut reader = CsvReader::new(shape.separator, shape.columns.len() + 1);
    let mut scanner = Scanner::again(shape.format, first_line).separated_by(shape.separator);
    let mut rest = data;
    while !rest.is_empty() {
        let line = scanner.line();
        let end = match scanner.scan(rest) {
            Found::Record(end) => end,
            _ => rest.len(),
        };
        let (record, after) = rest.split_at(end);
        rest = after;
        let blank = |byte: &u8| {
            byte.is_ascii_whitespace() || (shape.format == Format::Csv && *byte == shape.separator)
        };
        if record.iter().all(blank) {
            continue;
        }
        let read = match shape.format {
            Format::Csv => match reader.row(record, &shape.columns).transpose() {
                Some(row) => row,
                None => continue,
            },
            Format::Ndjson => {
                json(if line == 1 { record.strip_prefix(BOM).unwrap_or(record) } else { record })
            }
        };
        match read.and_then(|row| contact(&row, &shape.region)) {
            Ok((phone, name, email)) => {
                batch.accepted += 1;
                let known: &mut (Option<String>, Option<String>) = contacts.entry(phone).or_default();
                // The last one in the file wins; what it leaves out, it leaves as it is.
                known.0 = name.or_else(|| known.0.take());
                known.1 = email.or_else(|| known.1.take());
            }
            Err(flaw) => batch.rejects.push(Reject::new(line, flaw, record)),
        }
    }
    batch.contacts =
        contacts.into_iter().map(|(phone, (name, email))| Contact { phone, name, email }).collect();
    batch
}

type Fields = (String, Option<String>, Option<String>);

fn contact(row: &Row, region: &str) -> Result<Fields, Flaw> {
    fn given(text: &Option<String>) -> Option<&str> {
        text.as_deref().filter(|text| !rules::plain(text).is_empty())
    }
    let phone = rules::phone(row.phone.as_deref().unwrap_or_default(), region)?;
    let name = given(&row.name).map(rules::name).transpose()?.map(Cow::into_owned);
    let email = given(&row.email).map(rules::email).transpose()?.map(Cow::into_owned);
    Ok((phone, name, email))
}

fn json(record: &[u8]) -> Result<Row, Flaw> {
    let text = str::from_utf8(record).map_err(|_not_utf8| NOT_UTF8)?;
    // A list of values would be taken for the fields in their order.
    if !text.trim_start().starts_with('{') {
        return Err(if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() {
            SHAPE
        } else {
            not_json(text)
        });
    }
    serde_json::from_str(text).map_err(|error| if error.is_data() { SHAPE } else { not_json(text) })
}

/// Letters of two bytes each have a zero in them.
fn not_json(text: &str) -> Flaw {
    if text.contains('\0') { UTF16 } else { NOT_JSON }
}

/// Splits records into fields.
pub(super) struct CsvReader {
    reader: Reader,
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl CsvReader {
    pub(super) fn new(separator: u8, most_fields: usize) -> Self {
        let mut builder = ReaderBuilder::new();
        let reader = builder.delimiter(separator).terminator(Terminator::Any(b'\n')).build();
        Self { reader, text: vec![0; LONGEST + 1], ends: vec![0; most_fields] }
    }

    /// None where a quote is not closed or there are too many.
    pub(super) fn fields(&mut self, record: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
        let (result, _, _, fields) = self.reader.read_record(record, &mut self.text, &mut self.ends);
        if result != ReadRecordResult::Record {
            self.reader.reset();
            return None;
        }
        let text = &self.text;
        let starts = std::iter::once(0).chain(self.ends[..fields].iter().copied());
        Some(starts.zip(&self.ends[..fields]).map(|(start, end)| &text[start..*end]))
    }

    /// None where no field says anything.
    fn row(&mut self, record: &[u8], columns: &[String]) -> Result<Option<Row>, Flaw> {
        if str::from_utf8(record).is_err() {
            return Err(NOT_UTF8);
        }
        let named = columns.iter().filter(|column| !column.is_empty()).count();
        let (result, _, _, fields) = self.reader.read_record(record, &mut self.text, &mut self.ends);
        match result {
            ReadRecordResult::Record if (named..=columns.len()).contains(&fields) => {}
            ReadRecordResult::Record => return Err(FIELDS),
            ReadRecordResult::InputEmpty => {
                self.reader.reset();
                return Err(UNCLOSED);
            }
            _ => {
                self.reader.reset();
                return Err(FIELDS);
            }
        }
        let (mut row, mut start, mut blank) = (Row::default(), 0, true);
        for (column, end) in columns.iter().zip(&self.ends[..fields]) {
            let text = String::from_utf8_lossy(&self.text[start..*end]);
            start = *end;
            // A formula that only says that it is a text.
            let inside = text.trim().strip_prefix("=\"").and_then(|text| text.strip_suffix('"'));
            let text = inside.unwrap_or(&text);
            if rules::plain(text).is_empty() {
                continue;
            }
            blank = false;
            let field = match column.as_str() {
                "phone" => &mut row.phone,
                "name" => &mut row.name,
                "email" => &mut row.email,
                _ => return Err(UNNAMED),
            };
            *field = Some(text.to_owned());
        }
        Ok((!blank).then_some(row))
    }
}
