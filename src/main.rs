//! The `perto` command: the service, and the tools around the library.

mod cli;
mod service;

use std::process::ExitCode;

/// The system's own keeps what thousands of clients took for a moment: see `docs/DECISIONS.md`.
#[cfg(unix)]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match cli::Command::read().run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::complain(&error);
            ExitCode::FAILURE
        }
    }
}
