//! `perto migrate`: the tables of the invalidation log, and of the service, made or upgraded.

use clap::Args;
use perto::postgres;

use super::connect::Database;
use crate::service;

/// See the command's help.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// The schema that holds the log
    #[arg(long, default_value = "perto", conflicts_with = "service")]
    schema: String,
    /// Make the service's tables too, and watch them
    #[arg(long)]
    service: bool,
    /// Print the SQL that would be run for the log, and run nothing
    #[arg(long, conflicts_with = "service")]
    sql: bool,
    #[command(flatten)]
    database: Database,
}

impl Migrate {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        if self.sql {
            let mut connection = self.database.connect().await?;
            let sql = postgres::migrate_sql(&mut connection, &self.schema).await?;
            sql.as_deref().unwrap_or("-- nothing to do").lines().for_each(super::say);
            return Ok(());
        }
        let mut connection = self.database.connect_or_create().await?;
        if self.service {
            service::schema::migrate(&mut connection).await?;
        } else {
            postgres::migrate(&mut connection, &self.schema).await?;
        }
        super::say("the tables are up to date");
        Ok(())
    }
}
