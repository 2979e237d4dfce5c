//! The command line. Each command is a file.

use clap::Parser;
use perto_cli::terminal::{complain, say, say_error};
use perto_cli::{Product, Tools, connect, http, table};

use crate::service::schema;

mod healthcheck;
mod keys;
mod load;
mod migrate;
mod seed;
mod serve;

pub(crate) const NAME: &str = "perto-chat";

/// The caches of a customer-chat product over HTTP, and the tools around them.
#[derive(Debug, Parser)]
#[command(name = NAME, version, about)]
pub(crate) enum Command {
    /// Serve the caches over HTTP
    Serve(Box<serve::Serve>),
    /// Make or upgrade the tables of the service and of the invalidation log, and watch them
    Migrate(migrate::Migrate),
    /// Put demo data into the service's tables
    Seed(seed::Seed),
    /// Make, list and revoke the API keys of companies
    Keys(keys::Keys),
    /// Ask instances for the demo data, at a rate and for a time, and show how they answer
    Load(load::LoadGenerator),
    /// Ask the instance on this machine whether it is ready; the answer is the exit status
    Healthcheck(healthcheck::Healthcheck),
    /// What comes with the library.
    #[command(flatten)]
    Tools(Tools),
}

impl Command {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Serve(command) => command.run().await,
            Self::Migrate(command) => command.run().await,
            Self::Seed(command) => command.run().await,
            Self::Keys(command) => command.run().await,
            Self::Load(command) => command.run().await,
            Self::Healthcheck(command) => command.run().await,
            Self::Tools(tools) => tools.run(Some(product())).await,
        }
    }
}

fn product() -> Product {
    Product {
        program: NAME,
        app: "service",
        schema: schema::LOG,
        known_by: "figures_reset",
        last_migration: schema::last_migration(),
        watched: &schema::WATCHED,
        connections: serve::CONNECTIONS,
        migrate: "perto-chat migrate",
        migrate_log: "perto-chat migrate --log-only",
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Command;

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Command::command().debug_assert();
    }
}
