//! The `perto` command: the service, and the tools around the library.

mod cli;
mod service;

use std::process::ExitCode;

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
