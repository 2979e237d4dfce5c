//! The command `perto`: makes, watches, checks and inspects what Perto keeps in Postgres and Redis, for any program that
//! uses the library. A program of its own takes [`Tools`] among its commands, and says what is its own in a [`Product`].

use clap::{Parser, Subcommand};

mod columns;
pub mod connect;
mod doctor;
pub mod http;
mod inspect;
pub mod migrate;
pub mod plot;
mod replay;
pub mod shown;
mod switch;
pub mod terminal;
mod watch;

pub use columns::table;

use terminal::{duration, one_line, say, say_error};

/// A coherent two-tier near cache: the tools around it.
#[derive(Debug, Parser)]
#[command(name = "perto", version, about)]
pub enum Command {
    /// Make or upgrade the tables of the invalidation log
    Migrate(migrate::Migrate),
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
    /// Put a tier of a cache aside on every instance, in an incident; without arguments, show what is
    Switch(switch::Switch),
    /// Drive an access trace through several instances, with writes and faults, and check the promise
    Replay(Box<replay::Replay>),
}

/// Connections that the log of an instance has: the tail one, the rest of it two.
pub const OF_THE_LOG: u32 = 3;

/// What the tools know of a program that has them among its commands, and keeps its data in the database that they look at.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// What it is called in a shell, for the commands that are printed.
    pub program: &'static str,
    /// The app of its instances.
    pub app: &'static str,
    /// The schema of its log.
    pub schema: &'static str,
    /// A table that nobody else has.
    pub known_by: &'static str,
    /// Its last migration, by sqlx.
    pub last_migration: i64,
    /// Each table that its caches read.
    pub watched: &'static [Source],
    /// Connections that an instance opens at most, by default.
    pub connections: u32,
    /// The command that makes its tables, those of its log, and its triggers.
    pub migrate: &'static str,
    /// The command that makes those of a log alone.
    pub migrate_log: &'static str,
}

/// A table that a product's caches read.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    /// The table.
    pub table: &'static str,
    /// The cache or topic that its writes invalidate.
    pub cache: &'static str,
    /// The keys, as SQL.
    pub key: &'static str,
    /// Of which columns, where not of all: updates of others invalidate nothing.
    pub columns: &'static [&'static str],
}

impl Source {
    /// As the log of this schema has it.
    #[must_use]
    pub fn watch(&self, schema: &str) -> perto::postgres::Watch {
        perto::postgres::Watch {
            schema: schema.to_owned(),
            table: self.table.to_owned(),
            cache: self.cache.to_owned(),
            key: self.key.to_owned(),
            columns: self.columns.iter().map(|&column| column.to_owned()).collect(),
        }
    }
}

/// An option of our own commands, where it is not the default.
fn schema_option(schema: &str) -> String {
    if schema == "perto" { String::new() } else { format!(" --schema {schema}") }
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
            Self::Watch(command) => command.run(product).await,
            Self::Doctor(command) => command.run(product).await,
            Self::Inspect(command) => command.run(product).await,
            Self::Switch(command) => command.run(product).await,
            Self::Replay(command) => command.run().await,
        }
    }
}
