//! `perto-chat migrate`: the tables of the service and of its log, made or upgraded, and watched.

use clap::Args;

use crate::service::schema;

/// See the command's help.
// Groups go by the name of the type, and the flattened one has that of this.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Migrate {
    /// Make or upgrade the invalidation log alone, as `perto migrate` does. For --sql and --schema
    #[arg(long)]
    log_only: bool,
    #[command(flatten)]
    log: perto_cli::migrate::Migrate,
}

impl Migrate {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        // What the service's own tables had for the release before, they keep.
        if self.log_only || self.log.finish {
            return self.log.run().await;
        }
        if self.log.sql || self.log.schema != schema::LOG {
            anyhow::bail!("--sql and --schema are for the log: say --log-only, too");
        }
        let mut connection = self.log.connect().await?;
        let done = schema::migrate(&mut connection).await?;
        if done.is_empty() {
            super::say("the tables and triggers are there already: nothing to do");
        }
        done.iter().for_each(|line| super::say(line));
        if let Some(beside) = perto_cli::migrate::beside(&mut connection, schema::LOG).await? {
            super::say(&beside);
        }
        Ok(())
    }
}
