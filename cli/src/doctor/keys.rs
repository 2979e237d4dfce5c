//! What the doctor says of keys: columns whose texts compare otherwise than keys do, and functions that nothing runs.

use perto::postgres::{Watch, Watched};
use sqlx::FromRow;

use super::postgres::reading;
use super::tables::command;
use super::{Doctor, Finding, Findings};

/// A column of a watched table whose text is not what a loader asks by.
#[derive(Debug, FromRow)]
struct Column {
    /// The watched table, as it is recorded.
    name: String,
    table: String,
    column: String,
    /// `char(8)`, `citext`, or a type and its collation.
    shape: String,
    padded: bool,
}

pub(super) async fn columns(doctor: &Doctor, watched: &[Watched]) -> Findings {
    let mut connection = reading(&doctor.database).await?;
    let names: Vec<&str> = watched.iter().map(|watched| watched.watch.table.as_str()).collect();
    let columns: Vec<Column> = sqlx::query_as(
        "select w.name, format('%I.%I', n.nspname, c.relname) as table, a.attname::text as column, \
           case when co.collisdeterministic then format_type(a.atttypid, a.atttypmod) \
             else format('%s collate %I', format_type(a.atttypid, a.atttypmod), co.collname) end as shape, \
           b.typname = 'bpchar' as padded \
         from (select distinct unnest($1::text[]) as name) w join pg_class c on c.oid = to_regclass(w.name) \
         join pg_namespace n on n.oid = c.relnamespace join pg_attribute a on a.attrelid = c.oid \
         join pg_type t on t.oid = a.atttypid join pg_type b on b.oid = coalesce(nullif(t.typbasetype, 0), t.oid) \
         left join pg_collation co on co.oid = a.attcollation \
         where a.attnum > 0 and not a.attisdropped \
           and (b.typname in ('bpchar', 'citext') or not co.collisdeterministic) order by 1, a.attnum",
    )
    .persistent(false)
    .bind(names)
    .fetch_all(&mut connection)
    .await?;
    let findings = watched.iter().flat_map(|watched| {
        let watch = &watched.watch;
        let of_it = columns.iter().filter(|column| column.name == watch.table);
        of_it.filter_map(move |column| column.judged(doctor, watch))
    });
    Ok(findings.collect())
}

impl Column {
    fn judged(&self, doctor: &Doctor, watch: &Watch) -> Option<Finding> {
        let Self { table, column, shape, padded, .. } = self;
        let quoted = format!("\"{}\"", column.replace('"', "\"\""));
        let folded = ["lower(", "upper("].iter().any(|fold| watch.key.to_lowercase().contains(fold));
        if !mentions(&watch.key, column, &quoted) || folded {
            return None;
        }
        let is_plain = column.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let name = if is_plain { column } else { &quoted };
        let who = format!("{name} of {table}, in the key of cache or topic {}, is {shape}", watch.cache);
        Some(if *padded {
            let found = format!(
                "{who}: who reads it as it is gets it padded with spaces, and the log names it without. What is loaded is then no \
                 answer to what was asked"
            );
            Finding::warn("keys", found)
                .mend(format!("alter table {table} alter column {name} type varchar;"))
        } else {
            let found = format!(
                "{who}: `where {name} = 'ANA'` finds the row `ana`, and only `ana` is evicted when it is written. Key it by \
                 one spelling, and load by that"
            );
            let key = folded_by(&watch.key, name);
            let mend = command(doctor, &Watch { key, ..watch.clone() });
            Finding::warn("keys", found).mend(format!("{mend} --replace"))
        })
    }
}

fn of_a_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// The expression, with this column folded wherever it stands as a word.
fn folded_by(key: &str, name: &str) -> String {
    let mut folded = String::with_capacity(key.len() + 16);
    let mut done = 0;
    for (at, _) in key.match_indices(name) {
        let end = at + name.len();
        let inside = key[..at].ends_with(of_a_word) || key[end..].starts_with(of_a_word);
        if !inside {
            folded += &format!("{}lower({name}::text)", &key[done..at]);
            done = end;
        }
    }
    folded + &key[done..]
}

/// Whether an expression names a column.
fn mentions(key: &str, column: &str, quoted: &str) -> bool {
    key.contains(quoted) || key.split(|c: char| !of_a_word(c)).any(|word| word.to_lowercase() == *column)
}

/// Trigger functions of tables that went, or that are watched otherwise now.
pub(super) async fn orphans(doctor: &Doctor) -> Findings {
    let mut connection = reading(&doctor.database).await?;
    let functions: Vec<String> = sqlx::query_scalar(
        "select p.oid::regprocedure::text from pg_proc p join pg_namespace n on n.oid = p.pronamespace \
         where n.nspname = $1 and p.prorettype = 'trigger'::regtype and p.proname like '%:%' \
           and not exists (select from pg_trigger t where t.tgfoid = p.oid) order by 1",
    )
    .persistent(false)
    .bind(&doctor.schema)
    .fetch_all(&mut connection)
    .await?;
    if functions.is_empty() {
        return Ok(Vec::new());
    }
    let found = format!(
        "no trigger runs {}: left behind by a table that went, or by a restore",
        functions.join(", ")
    );
    Ok(vec![Finding::warn("functions", found).mend(format!("drop function {};", functions.join(", ")))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_folded_where_it_is_a_word_and_nowhere_else() {
        assert_eq!(folded_by("id || paid || id_2", "id"), "lower(id::text) || paid || id_2");
        assert_eq!(folded_by("\"A b\" || 'x'", "\"A b\""), "lower(\"A b\"::text) || 'x'");
    }

    #[test]
    fn a_column_is_named_as_a_word_or_in_quotes() {
        for (key, column, named) in [
            ("id", "id", true),
            ("shop || ':' || ID", "id", true),
            ("t.id::text", "id", true),
            ("paid", "id", false),
            ("\"Id\"", "Id", true),
            ("idx + id_2", "id", false),
        ] {
            assert_eq!(mentions(key, column, &format!("\"{column}\"")), named, "{key} {column}");
        }
    }
}
