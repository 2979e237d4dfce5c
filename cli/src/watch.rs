//! `perto watch TABLE`: triggers that make any SQL write to a table invalidate.

use clap::Args;
use perto::postgres;

use super::connect::Database;

/// See [`postgres::watch`].
#[derive(Debug, Args)]
pub struct Watch {
    /// The table, with its schema where that is not on the search path. Partitions are watched too
    table: String,
    /// The cache whose keys a write invalidates
    #[arg(long)]
    cache: String,
    /// A key's text, as an SQL expression over the columns of one row; a set-returning one gives several keys
    #[arg(long, default_value = "id", value_name = "EXPR")]
    key: String,
    /// The columns that values are made of, with a comma between. Updates of others invalidate nothing. Name all of
    /// them: of one that is missing, changes are not seen. Default: every update counts
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',')]
    columns: Vec<String>,
    /// The schema that holds the log
    #[arg(long, default_value = "perto")]
    schema: String,
    /// Watch it so also where it is watched by another key or other columns for this cache
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

impl Watch {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut connection = self.database.connect().await?;
        let watch = postgres::Watch {
            schema: self.schema,
            table: self.table,
            cache: self.cache,
            key: self.key,
            columns: self.columns,
        };
        if self.sql {
            let sql = postgres::watch_sql(&mut connection, &watch, self.replace).await?;
            sql.as_deref().unwrap_or("-- nothing to do").lines().for_each(super::say);
            return Ok(());
        }
        let (tables, done) = if self.remove {
            (postgres::unwatch(&mut connection, &watch).await?, "no longer watched")
        } else if self.replace {
            (postgres::rewatch(&mut connection, &watch).await?, "watched")
        } else {
            (postgres::watch(&mut connection, &watch).await?, "watched")
        };
        for table in tables {
            super::say(&format!("{table} is {done} for cache {}", watch.cache));
        }
        Ok(())
    }
}
