//! `perto-chat`: the service, what it needs around it, and the tools that come with the library.

mod command;
mod service;

use std::process::ExitCode;

use perto_cli::terminal;

/// The system's own keeps what thousands of clients took for a moment: see `docs/DECISIONS.md`.
#[cfg(unix)]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    terminal::ended(command::NAME, &terminal::read::<command::Command>().run().await)
}
