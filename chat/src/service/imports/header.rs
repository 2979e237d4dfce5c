//! The first line of a CSV file: what its columns are called, and what is between them. Where it can't be read, what the
//! file is instead is said: spreadsheets write many things that they call CSV.

use super::rows::CsvReader;
use crate::service::rules;

const BOM: &[u8] = b"\xef\xbb\xbf";
/// Most columns that a header is read of.
const MAX_COLUMNS: usize = 1_024;
/// Spreadsheets write a semicolon where the comma is for decimals.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];
const SAVE: &str = "save it as UTF-8 (in Excel: \"CSV UTF-8\")";

/// What columns may be called, as [`folded`] has them.
const NAMES: [(&str, &[&str]); 3] = [
    (
        "phone",
        &[
            "phone",
            "phonenumber",
            "telephone",
            "tel",
            "mobile",
            "mobilephone",
            "cell",
            "cellphone",
            "telefone",
            "numerodetelefone",
            "celular",
            "telemovel",
            "fone",
            "telefono",
            "movil",
            "telefon",
            "telefonnummer",
            "handy",
            "handynummer",
            "mobil",
        ],
    ),
    ("name", &["name", "fullname", "nome", "nomecompleto", "nombre", "nombrecompleto"]),
    (
        "email",
        &[
            "email",
            "emailaddress",
            "mail",
            "enderecodeemail",
            "correo",
            "correoelectronico",
            "correio",
            "correioeletronico",
            "correioelectronico",
            "emailadresse",
            "mailadresse",
        ],
    ),
];

/// What a header says of the records behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// `phone`, `name` or `email`, in their order. Those at the end may have no name, and hold nothing.
    pub(super) columns: Vec<String>,
    pub(super) separator: u8,
}

/// The separator of a line like `sep=;`, which Excel writes before the header.
pub(super) fn declared(record: &[u8]) -> Option<u8> {
    let record = record.strip_prefix(BOM).unwrap_or(record);
    let line = record.strip_suffix(b"\n").unwrap_or(record);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = line.strip_prefix(b"\"").and_then(|line| line.strip_suffix(b"\"")).unwrap_or(line);
    match line {
        [b's' | b'S', b'e' | b'E', b'p' | b'P', b'=', separator] if separator.is_ascii_punctuation() => {
            Some(*separator).filter(|separator| *separator != b'"')
        }
        [b's' | b'S', b'e' | b'E', b'p' | b'P', b'=', b'\t'] => Some(b'\t'),
        _ => None,
    }
}

/// Reads a header. Where no line before it has declared a separator, it is the one that gives names which are known.
///
/// # Errors
/// In words: which column is unknown, missing or there twice; or what the file is.
pub(super) fn read(record: &[u8], declared: Option<u8>) -> Result<Header, String> {
    if let Some(wrong) = unreadable(record) {
        return Err(wrong);
    }
    let record = record.strip_prefix(BOM).unwrap_or(record);
    let tried = |separator| columns(record, separator).map(|columns| Header { columns, separator });
    if let Some(separator) = declared {
        return tried(separator);
    }
    if let Some(header) = SEPARATORS.iter().find_map(|separator| tried(*separator).ok()) {
        return Ok(header);
    }
    let times = |separator: u8| record.iter().filter(|byte| **byte == separator).count();
    let likely = SEPARATORS.into_iter().rev().max_by_key(|separator| times(*separator)).unwrap_or(b',');
    let other = [b'|', b'^', b'~', b':'].into_iter().find(|separator| tried(*separator).is_ok());
    match other.filter(|_| times(likely) == 0) {
        Some(other) => Err(format!(
            "has {:?} between its columns; write a comma, a semicolon or a tab, or `sep={}` on a line before it",
            char::from(other),
            char::from(other)
        )),
        None => tried(likely).map_err(|wrong| match likely {
            b',' => wrong,
            b'\t' => format!("{wrong} (a tab is between the columns)"),
            likely => format!("{wrong} ({:?} is between the columns)", char::from(likely)),
        }),
    }
}

/// Why a first line, or what came of it, is none of CSV in UTF-8.
pub(super) fn unreadable(record: &[u8]) -> Option<String> {
    let says = |what: &str, mend: &str| Some(format!("is {what}: {mend}"));
    let text = record.strip_prefix(BOM).unwrap_or(record).trim_ascii();
    match record {
        [b'P', b'K', 3, 4, ..] => {
            return says("an Excel workbook (.xlsx) or another archive", "save it as CSV in UTF-8");
        }
        [0xd0, 0xcf, 0x11, 0xe0, ..] => {
            return says("an Excel workbook (.xls)", "save it as CSV in UTF-8");
        }
        [0x1f, 0x8b, ..] => return says("compressed", "send it as it is"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => return says("in UTF-16", SAVE),
        _ if record.contains(&0) => return says("in UTF-16", SAVE),
        _ => {}
    }
    match text {
        [b'<', ..] => return says("HTML or XML", "save it as CSV in UTF-8"),
        [b'{' | b'[', ..] => {
            return says("JSON", "send objects, each on a line, as application/x-ndjson");
        }
        [b'%', b'P', b'D', b'F', ..] => return says("a PDF", "save it as CSV in UTF-8"),
        _ => {}
    }
    if str::from_utf8(record).is_err() {
        return Some(format!("is not UTF-8, but perhaps Windows-1252 or Latin-1: {SAVE}"));
    }
    if text.contains(&b'\r') && !text.contains(&b'\n') {
        return Some("ends its lines with CR alone, as old Macs do: end them with LF or CRLF".to_owned());
    }
    None
}

fn columns(record: &[u8], separator: u8) -> Result<Vec<String>, String> {
    let mut reader = CsvReader::new(separator, MAX_COLUMNS);
    let Some(names) = reader.fields(record) else {
        return Err("can't be read as the names of columns".to_owned());
    };
    let mut columns: Vec<(&str, String)> = Vec::new();
    for name in names {
        let name = String::from_utf8_lossy(name);
        let name = rules::plain(&name);
        let shown: String = name.chars().take(40).collect();
        if name.is_empty() {
            columns.push(("", shown));
            continue;
        }
        let folded = folded(&name);
        let Some((known, _)) = NAMES.iter().find(|(_, names)| names.contains(&folded.as_str())) else {
            return Err(format!("has the column {shown:?}; there may be phone, name and email"));
        };
        match columns.iter().find(|(column, _)| column == known) {
            Some((_, other)) if self::folded(other) == folded => {
                return Err(format!("has the column {:?} twice", shown.to_lowercase()));
            }
            Some((_, other)) => {
                return Err(format!("has two columns for the {known}, {other:?} and {shown:?}: leave one"));
            }
            None => columns.push((known, shown)),
        }
    }
    let named = columns.iter().rposition(|(column, _)| !column.is_empty()).map_or(0, |last| last + 1);
    if let Some(at) = columns[..named].iter().position(|(column, _)| column.is_empty()) {
        return Err(format!("has no name for its column {}; name it, or leave it out", at + 1));
    }
    if !columns.iter().any(|(column, _)| *column == "phone") {
        return Err("lacks the column \"phone\"".to_owned());
    }
    Ok(columns.into_iter().map(|(column, _)| column.to_owned()).collect())
}

/// In small letters, without accents, spaces and hyphens.
fn folded(name: &str) -> String {
    let letter = |c: char| match c {
        'à' | 'á' | 'â' | 'ã' | 'ä' => 'a',
        'ç' => 'c',
        'é' | 'ê' => 'e',
        'í' => 'i',
        'ñ' => 'n',
        'ó' | 'ô' | 'õ' | 'ö' => 'o',
        'ú' | 'ü' => 'u',
        c => c,
    };
    let passed_over = |c: char| c.is_whitespace() || matches!(c, '_' | '-' | '.' | '\u{300}'..='\u{36f}');
    name.to_lowercase().chars().filter(|c| !passed_over(*c)).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(separator: u8, columns: &[&str]) -> Header {
        Header { separator, columns: columns.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn a_header_is_read_as_spreadsheets_write_it() {
        for (line, separator, columns) in [
            ("phone,name,email\n", b',', &["phone", "name", "email"][..]),
            ("\u{feff}Name; PHONE ;eMail\r\n", b';', &["name", "phone", "email"]),
            ("\"phone\";\"name\"\n", b';', &["phone", "name"]),
            ("phone\tname\n", b'\t', &["phone", "name"]),
            ("phone,name,email,,\n", b',', &["phone", "name", "email", "", ""]),
            ("Telemóvel;Nome completo;E-mail\n", b';', &["phone", "name", "email"]),
            ("celular,nome\n", b',', &["phone", "name"]),
            ("Te\u{301}lefone\n", b',', &["phone"]),
            ("Phone Number,Full_Name,E-Mail Address\n", b',', &["phone", "name", "email"]),
            ("\u{200b}phone\u{200e}\n", b',', &["phone"]),
        ] {
            assert_eq!(read(line.as_bytes(), None), Ok(header(separator, columns)), "{line:?}");
        }
        assert_eq!(read(b"phone|name\n", Some(b'|')), Ok(header(b'|', &["phone", "name"])));
        for (line, separator) in [
            ("sep=;\r\n", Some(b';')),
            ("\u{feff}SEP=,\n", Some(b',')),
            ("\"sep=;\"\n", Some(b';')),
            ("sep=\t\n", Some(b'\t')),
            ("sep=;;\n", None),
            ("sep=a\n", None),
            ("sep=\"\n", None),
            ("phone\n", None),
        ] {
            assert_eq!(declared(line.as_bytes()), separator, "{line:?}");
        }
    }

    #[test]
    fn what_a_file_is_instead_is_said() {
        let utf16: Vec<u8> = "phone,name\r\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let marked: Vec<u8> = "\u{feff}phone\n".encode_utf16().flat_map(u16::to_be_bytes).collect();
        for (line, says) in [
            (&utf16[..], "UTF-16"),
            (&marked, "UTF-16"),
            (b"\xff\xfep\0", "UTF-16"),
            (b"telem\xf3vel;nome\n", "Windows-1252"),
            (b"phone,name\r912345678,Ann\r", "CR alone"),
            (b"PK\x03\x04\x14\0", ".xlsx"),
            (b"\xd0\xcf\x11\xe0\xa1", ".xls"),
            (b"\x1f\x8b\x08", "compressed"),
            (b"<html><table>\n", "HTML"),
            (b"[{\"phone\": \"1\"}]\n", "JSON"),
            (b"%PDF-1.7\n", "PDF"),
            (b"phone|name\n", "'|' between"),
            (b"phone;age\n", "\"age\"; there may be phone, name and email (';' is between the columns)"),
            (b"phone\tage\n", "a tab is between"),
            (b"phone,telefone\n", "two columns for the phone, \"phone\" and \"telefone\""),
            (b"phone,Phone\n", "the column \"phone\" twice"),
            (b",phone\n", "no name for its column 1"),
            (b"name,,\n", "lacks the column \"phone\""),
        ] {
            let wrong = read(line, None).unwrap_err();
            assert!(wrong.contains(says), "{says}: {wrong}");
        }
    }
}
