//! Tables that caches and topics declare as their sources, against what is watched: of the service, and of any program that wrote
//! down what it declares (`Perto::declared`).

use std::path::Path;

use anyhow::{Context, anyhow};
use perto::postgres::{Watch, Watched};
use serde::Deserialize;
use sqlx::PgConnection;

use super::postgres::reading;
use super::tables::command;
use super::{Doctor, Finding, Findings, State};
use crate::{Product, Source};

/// A cache or topic, in the file that a program has written.
#[derive(Debug, Deserialize)]
pub(super) struct Declared {
    cache: String,
    tables: Vec<String>,
    #[serde(default)]
    watches: Vec<DeclaredWatch>,
}

/// How one of the tables is to be watched.
#[derive(Debug, Deserialize)]
struct DeclaredWatch {
    table: String,
    key: String,
    #[serde(default)]
    columns: Vec<String>,
}

/// Reads such a file.
///
/// # Errors
/// What it should be.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<Declared>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("--declared: {}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| {
        let like = r#"[{"cache": "user", "tables": ["public.users"]}], as `Perto::declared()` gives it"#;
        anyhow!("--declared: {}: {error}; like {like}", path.display())
    })
}

/// Of the program that wrote the file.
pub(super) async fn of_file(doctor: &Doctor, declared: &[Declared], watched: &[Watched]) -> Findings {
    let mut connection = reading(&doctor.database).await?;
    let mut findings = Vec::new();
    for Declared { cache, tables, watches } in declared {
        if tables.is_empty() {
            findings.push(Finding::ok(
                "declared",
                format!("cache or topic {cache} declares no table: nothing to look at"),
            ));
        }
        for table in tables {
            match name(&mut connection, table).await? {
                Some(name) => {
                    let declared = watches.iter().find(|declared| declared.table == *table);
                    let (key, columns) = declared.map_or_else(Default::default, |declared| {
                        (declared.key.clone(), declared.columns.clone())
                    });
                    let (schema, cache) = (doctor.schema.clone(), cache.clone());
                    let watch = Watch { schema, table: name, cache, key, columns };
                    findings.extend(judge("declared", doctor, watched, &watch));
                }
                None => {
                    let found =
                        format!("cache or topic {cache} reads {table}, which is not in this database");
                    findings.push(
                        Finding::wrong("declared", found).mend("create the table, or correct `.tables(…)`"),
                    );
                }
            }
        }
    }
    Ok(findings)
}

/// Of the product whose command this is, where this is its database.
pub(super) async fn of_product(doctor: &Doctor, watched: &[Watched]) -> Findings {
    let mut connection = reading(&doctor.database).await?;
    let Some(product) = product(doctor, &mut connection).await? else { return Ok(Vec::new()) };
    if doctor.schema != product.schema {
        return Ok(Vec::new());
    }
    let mut findings = vec![migrations(&product, &mut connection).await?];
    for source in product.watched {
        let Source { table, cache, .. } = source;
        match name(&mut connection, table).await? {
            Some(name) => {
                let watch = Watch { table: name, ..source.watch(&doctor.schema) };
                findings.extend(judge("service", doctor, watched, &watch));
            }
            None => {
                let found =
                    format!("its table {table} is not in this database: cache or topic {cache} reads it");
                findings.push(Finding::wrong("service", found).mend(product.migrate));
            }
        }
    }
    Ok(findings)
}

/// The product, where this is its database: by a table that nobody else has. Tables called `users` are everywhere.
pub(super) async fn product(
    doctor: &Doctor,
    connection: &mut PgConnection,
) -> Result<Option<Product>, sqlx::Error> {
    let Some(product) = doctor.product else { return Ok(None) };
    let is_its_own: bool = sqlx::query_scalar(
        "select to_regclass($1) is not null and to_regclass('_sqlx_migrations') is not null",
    )
    .persistent(false)
    .bind(product.known_by)
    .fetch_one(connection)
    .await?;
    Ok(is_its_own.then_some(product))
}

async fn migrations(product: &Product, connection: &mut PgConnection) -> Result<Finding, sqlx::Error> {
    let done: i64 =
        sqlx::query_scalar("select coalesce(max(version), 0) from _sqlx_migrations where success")
            .persistent(false)
            .fetch_one(connection)
            .await?;
    let last = product.last_migration;
    Ok(if done < last {
        let found = format!("its tables are of version {done}, this Perto needs {last}");
        Finding::wrong("service", found).mend(product.migrate)
    } else {
        Finding::ok("service", format!("its tables are here, of version {done}"))
    })
}

/// A table, as SQL names it from anywhere. None where there is none.
async fn name(connection: &mut PgConnection, table: &str) -> Result<Option<String>, sqlx::Error> {
    let found = sqlx::query_scalar(
        "select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where c.oid = to_regclass($1)",
    );
    match found.persistent(false).bind(table).fetch_optional(connection).await {
        // No name at all.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42602") => Ok(None),
        found => found,
    }
}

/// Nothing where it is watched and something is wrong with that: it has been told of.
fn judge(check: &'static str, doctor: &Doctor, watched: &[Watched], declared: &Watch) -> Option<Finding> {
    let Watch { table: name, cache, .. } = declared;
    let its_own = |watched: &&Watched| {
        watched.watch.cache == *cache && watched.tables.iter().any(|table| table == name)
    };
    match watched.iter().find(its_own) {
        Some(watched) if watched.faults.is_empty() => {
            let (state, found) = match otherwise(&watched.watch, declared) {
                Some(found) => found,
                None => (State::Ok, "which is watched".to_owned()),
            };
            let finding = Finding::new(check, state, format!("cache or topic {cache} reads {name}, {found}"));
            Some(match state {
                State::Ok => finding,
                _ => finding.mend(format!("{} --replace", command(doctor, declared))),
            })
        }
        Some(_) => None,
        None => {
            let found = format!(
                "cache or topic {cache} reads {name}, which nobody watches for it: writes are not seen before the time to live"
            );
            Some(Finding::wrong(check, found).mend(command(doctor, declared)))
        }
    }
}

/// Whether it is watched otherwise than is declared, and what that does. No key: none is declared.
fn otherwise(watched: &Watch, declared: &Watch) -> Option<(State, String)> {
    if declared.key.is_empty() {
        return None;
    }
    if watched.key.trim() != declared.key.trim() {
        let found = format!(
            "which is watched by the key {:?} instead of {:?}: writes are not seen before the time to live",
            watched.key, declared.key
        );
        return Some((State::Wrong, found));
    }
    if watched.columns.is_empty() {
        let more =
            "which is watched for all columns, and less is declared: writes invalidate more than they need";
        return (!declared.columns.is_empty()).then(|| (State::Warn, more.to_owned()));
    }
    let is_missing = |column: &&String| !watched.columns.contains(column);
    let missing: Vec<&str> = declared.columns.iter().filter(is_missing).map(String::as_str).collect();
    let found = match (declared.columns.is_empty(), &missing[..]) {
        (true, _) => format!("which is watched for nothing but {}", watched.columns.join(", ")),
        (false, []) => return None,
        (false, missing) => format!("which is watched, but not for {}", missing.join(", ")),
    };
    Some((State::Wrong, format!("{found}: writes to what is left out are not seen before the time to live")))
}
