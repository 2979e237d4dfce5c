//! `perto migrate`: the tables of the service and of the invalidation log, made or upgraded.

use clap::Args;

use super::connect::Database;
use crate::service;

/// See the command's help.
#[derive(Debug, Args)]
pub(crate) struct Migrate {
    #[command(flatten)]
    database: Database,
}

impl Migrate {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut connection = self.database.connect_or_create().await?;
        service::schema::migrate(&mut connection).await?;
        super::say("the tables are up to date");
        Ok(())
    }
}
