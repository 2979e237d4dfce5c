//! `perto watch TABLE`: triggers that make any SQL write to a table invalidate.

use anyhow::{Context, bail};
use clap::Args;
use perto::postgres::{self, Watched};

use super::connect::Database;
use super::migrate;
use crate::Product;

/// See [`postgres::watch`].
#[derive(Debug, Args)]
pub struct Watch {
    /// The table, with its schema where that is not on the search path. Partitions are watched too
    table: String,
    #[command(flatten)]
    target: Target,
    /// A key's text, as an SQL expression over the columns of one row; a set-returning one gives several keys. Of a topic:
    /// the set that the row belongs to, like `company_id`. Default, for a cache: id
    #[arg(long, value_name = "EXPR")]
    key: Option<String>,
    /// The columns that values are made of, with a comma between. Updates of others invalidate nothing. Name all of
    /// them: of one that is missing, changes are not seen. Default: every update counts
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    columns: Vec<String>,
    /// The schema that holds the log
    #[arg(long, default_value = "perto")]
    schema: String,
    /// Watch it so also where it is watched by another key or other columns for this cache or topic
    #[arg(long)]
    replace: bool,
    /// Print the SQL that would be run, and run nothing
    #[arg(long)]
    sql: bool,
    /// Remove the triggers
    #[arg(long, conflicts_with_all = ["sql", "replace"])]
    remove: bool,
    #[command(flatten)]
    database: Database,
}

/// Whose keys a write invalidates. The log does not tell the two apart: only who asks for it does.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// The cache whose keys a write invalidates
    #[arg(long, value_name = "NAME")]
    cache: Option<String>,
    /// The topic whose keys a write invalidates, and with them the lists and counts that depend on them
    #[arg(long, value_name = "NAME")]
    topic: Option<String>,
}

impl Target {
    /// What to call it, and its name.
    fn named(self) -> Option<(&'static str, String)> {
        self.cache.map(|cache| ("cache", cache)).or_else(|| self.topic.map(|topic| ("topic", topic)))
    }
}

impl Watch {
    pub(crate) async fn run(self, product: Option<Product>) -> anyhow::Result<()> {
        let (kind, name) =
            self.target.named().context("--cache or --topic: whose keys a write invalidates")?;
        let key = match self.key {
            Some(key) => key,
            // Its rows' own keys name no set: a list that depends on it would see nothing.
            None if kind == "topic" && !self.remove => {
                bail!("--key: of a topic, the set that a row belongs to, like company_id")
            }
            None => "id".to_owned(),
        };
        // Before it stands in any SQL.
        postgres::log(self.database.url()?, &self.schema)?;
        let mut connection = self.database.connect().await?;
        migrate::needs_log(&mut connection, &self.schema, product).await?;
        let watch = postgres::Watch {
            schema: self.schema,
            table: self.table,
            cache: name,
            key,
            columns: self.columns,
        };
        if self.sql {
            let sql = postgres::watch_sql(&mut connection, &watch, self.replace).await?;
            sql.as_deref().unwrap_or("-- nothing to do").lines().for_each(super::say);
            return Ok(());
        }
        let before = postgres::watched(&mut connection, &watch.schema).await?;
        let of_it = before.iter().filter(|watched| watched.watch.cache == watch.cache).collect::<Vec<_>>();
        let for_it = format!("for {kind} {}", watch.cache);
        if self.remove {
            for table in postgres::unwatch(&mut connection, &watch).await? {
                super::say(&if of_it.iter().any(|watched| is_of(watched, &table)) {
                    format!("{table} is no longer watched {for_it}")
                } else {
                    format!("{table} was not watched {for_it}: nothing to do")
                });
            }
            return Ok(());
        }
        let is_done = postgres::watch_sql(&mut connection, &watch, self.replace).await?.is_none();
        let tables = if self.replace {
            postgres::rewatch(&mut connection, &watch).await?
        } else {
            postgres::watch(&mut connection, &watch).await?
        };
        for table in &tables {
            let by = &watch.key;
            super::say(&match of_it.iter().find(|watched| is_of(watched, table)) {
                _ if is_done => format!("{table} is watched {for_it} already, by {by}: nothing to do"),
                // By another key or other columns, or something of it was missing.
                Some(_) => format!("{table} was watched {for_it}, and is now watched anew, by {by}"),
                None => format!("{table} is now watched {for_it}, by {by}"),
            });
        }
        Ok(())
    }
}

fn is_of(watched: &Watched, table: &str) -> bool {
    watched.watch.table == table || watched.tables.iter().any(|of_it| of_it == table)
}
