//! `perto migrate`: the tables of the invalidation log, made or upgraded.

use clap::Args;
use perto::postgres;

use super::connect::Database;

/// See the command's help.
#[derive(Debug, Args)]
pub struct Migrate {
    /// The schema that holds the log
    #[arg(long, default_value = "perto")]
    pub schema: String,
    /// Print the SQL that would be run for the log, and run nothing
    #[arg(long)]
    pub sql: bool,
    /// Where it is to be made.
    #[command(flatten)]
    pub database: Database,
}

impl Migrate {
    /// # Errors
    /// What went wrong, for a person.
    pub async fn run(self) -> anyhow::Result<()> {
        if self.sql {
            let mut connection = self.database.connect().await?;
            let sql = postgres::migrate_sql(&mut connection, &self.schema).await?;
            sql.as_deref().unwrap_or("-- nothing to do").lines().for_each(super::say);
            return Ok(());
        }
        let mut connection = self.database.connect_or_create().await?;
        postgres::migrate(&mut connection, &self.schema).await?;
        super::say("the tables are up to date");
        Ok(())
    }
}
