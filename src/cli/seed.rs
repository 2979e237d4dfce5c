//! `perto seed`: demo data.

use clap::Args;

use super::connect::Database;
use crate::service;

/// See the command's help.
#[derive(Debug, Args)]
pub(crate) struct Seed {
    /// Companies to make, where there are fewer
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    companies: u32,
    #[command(flatten)]
    database: Database,
}

impl Seed {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut connection = self.database.connect().await?;
        let made = service::schema::seed(&mut connection, self.companies).await?;
        super::say(&format!("{made} companies made, {} asked for", self.companies));
        Ok(())
    }
}
