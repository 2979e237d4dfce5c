//! The rejected rows of an import as a CSV file, read a page at a time as it is sent.

use axum::body::Bytes;
use futures_util::{Stream, stream};
use uuid::Uuid;

use crate::service::database::Database;

/// Records are bounded, so this is within what an answer that is made while it is sent may take.
const PAGE: i64 = 200;

/// The file in pieces: `line,reason,record`, in the order of the lines.
pub(super) fn file(database: Database, import: Uuid) -> impl Stream<Item = Result<Bytes, sqlx::Error>> {
    stream::try_unfold(Some(-1), move |behind: Option<i64>| {
        let database = database.clone();
        async move {
            let Some(behind) = behind else { return Ok(None) };
            let sql = "select line, reason, record from import_rejects where import_id = $1 and line > $2 \
                       order by line limit $3";
            let query = database.write::<(i64, String, String)>(sql).bind(import).bind(behind).bind(PAGE);
            let rejects = database.fetch(query).await?;
            let mut text = if behind < 0 { "line,reason,record\r\n".to_owned() } else { String::new() };
            for (line, reason, record) in &rejects {
                text.push_str(&format!("{line},{},{}\r\n", field(reason), field(record)));
            }
            let next = rejects.last().map(|(line, ..)| *line);
            Ok(Some((Bytes::from(text), next)))
        }
    })
}

/// Always in quotes. A spreadsheet takes a cell that begins like a formula for one, and anybody may have written the record:
/// an apostrophe before it makes it a text. Where the decimal sign is a comma, cells end at semicolons, and quotes that
/// begin in the middle of one are none: there, lines and semicolons inside the record begin cells too.
fn field(text: &str) -> String {
    let mut shown = String::with_capacity(text.len() + 8);
    let mut begins = true;
    shown.push('"');
    for c in text.chars() {
        if begins && matches!(c, '=' | '+' | '-' | '@' | '\t' | '\r' | '＝' | '＋' | '－' | '＠') {
            shown.push('\'');
        }
        begins = matches!(c, ';' | '\t' | '\r' | '\n') || (begins && matches!(c, ' ' | '"'));
        shown.push(c);
        if c == '"' {
            shown.push(c);
        }
    }
    shown.push('"');
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_record_is_a_formula_or_leaves_its_field() {
        for (text, shown) in [
            ("a,\"b\"", "\"a,\"\"b\"\"\""),
            ("=1+1", "\"'=1+1\""),
            ("+351,x", "\"'+351,x\""),
            ("", "\"\""),
            ("a\r\nb", "\"a\r\nb\""),
            ("a;=1+1;+2", "\"a;'=1+1;'+2\""),
            ("a\n=1", "\"a\n'=1\""),
            ("a; =1", "\"a; '=1\""),
            ("\"=1\"", "\"\"\"'=1\"\"\""),
            ("a;\"=1\"", "\"a;\"\"'=1\"\"\""),
            ("＝1", "\"'＝1\""),
            ("a-b,+351", "\"a-b,+351\""),
        ] {
            assert_eq!(field(text), shown);
        }
    }
}
