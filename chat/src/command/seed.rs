//! `perto-chat seed`: demo data.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use clap::Args;

use super::connect::Database;
use crate::service::seed::{Amounts, seed};

/// See the command's help.
#[derive(Debug, Args)]
pub(crate) struct Seed {
    /// Companies that there are to be
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    companies: u32,
    /// Users that there are to be
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(0..=9_000_000))]
    users: u32,
    /// Contacts that there are to be
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(0..=7_000_000))]
    contacts: u32,
    /// Messages that there are to be, twenty a chat
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(0..=100_000_000))]
    messages: u32,
    #[command(flatten)]
    database: Database,
}

impl Seed {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut connection = self.database.connect().await?;
        let (began, bar) = (Instant::now(), std::io::stderr().is_terminal());
        let Self { companies, users, contacts, messages, .. } = self;
        let amounts = Amounts { companies, users, contacts, messages };
        seed(&mut connection, amounts, |table, there, wanted| {
            if bar {
                draw(table, there, wanted);
            }
        })
        .await?;
        super::say(&format!(
            "{companies} companies, {users} users, {contacts} contacts, {messages} messages; {:.1} s",
            began.elapsed().as_secs_f64()
        ));
        Ok(())
    }
}

/// A line that draws over itself, and stays when it is full.
fn draw(table: &str, there: i64, wanted: i64) {
    const WIDTH: i64 = 40;
    let full = usize::try_from(if wanted == 0 { WIDTH } else { there * WIDTH / wanted }).unwrap_or_default();
    let end = if there >= wanted { "\n" } else { "" };
    let mut out = std::io::stderr().lock();
    drop(write!(out, "\r{table:<10} [{:<40}] {there} of {wanted}{end}", "#".repeat(full)));
    drop(out.flush());
}
