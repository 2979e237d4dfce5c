//! The command `perto`: makes, watches, checks and inspects what Perto keeps in Postgres and Redis, for any program that
//! uses the library. A program of its own takes [`Tools`] among its commands, and says what is its own in a [`Product`].

use clap::{Parser, Subcommand};

mod columns;
pub mod connect;
mod doctor;
pub mod http;
mod inspect;
mod migrate;
pub mod plot;
mod replay;
pub mod shown;
pub mod terminal;
mod watch;

pub use columns::table;
pub use migrate::Migrate;
use terminal::{duration, one_line, say, say_error};

/// A coherent two-tier near cache: the tools around it.
#[derive(Debug, Parser)]
#[command(name = "perto", version, about)]
pub enum Command {
    /// Make or upgrade the tables of the invalidation log
    Migrate(Migrate),
    /// What every program brings that uses Perto
    #[command(flatten)]
    Tools(Tools),
}

/// Commands that are the same for every program that uses Perto.
#[derive(Debug, Subcommand)]
pub enum Tools {
    /// Make every SQL write to a table invalidate a cache or topic, or stop it
    Watch(watch::Watch),
    /// Look at Postgres and Redis, say what is wrong, and how to mend it
    Doctor(Box<doctor::Doctor>),
    /// Show one key through all tiers, and who would serve what
    Inspect(inspect::Inspect),
    /// Drive an access trace through several instances, with writes and faults, and check the promise
    Replay(Box<replay::Replay>),
}

/// Connections that the log of an instance has: the tail one, the rest of it two.
pub const OF_THE_LOG: u32 = 3;

/// What the doctor knows of a program that keeps its data in the database that it looks at.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// The app of its instances.
    pub app: &'static str,
    /// The schema of its log.
    pub schema: &'static str,
    /// A table that nobody else has.
    pub known_by: &'static str,
    /// Its last migration, by sqlx.
    pub last_migration: i64,
    /// Each table that its caches read, with the cache or topic and the key.
    pub watched: &'static [(&'static str, &'static str, &'static str)],
    /// Connections that an instance opens at most, by default.
    pub connections: u32,
    /// The command that makes its tables.
    pub migrate: &'static str,
}

impl Command {
    /// # Errors
    /// What went wrong, for a person.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Migrate(command) => command.run().await,
            Self::Tools(tools) => tools.run(None).await,
        }
    }
}

impl Tools {
    /// # Errors
    /// What went wrong, for a person.
    pub async fn run(self, product: Option<Product>) -> anyhow::Result<()> {
        match self {
            Self::Watch(command) => command.run().await,
            Self::Doctor(command) => command.run(product).await,
            Self::Inspect(command) => command.run().await,
            Self::Replay(command) => command.run().await,
        }
    }
}
