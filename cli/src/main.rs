//! The command `perto`: see the library of this crate.

use std::process::ExitCode;

use perto_cli::{Command, terminal};

#[tokio::main]
async fn main() -> ExitCode {
    terminal::ended("perto", &terminal::read::<Command>().run().await)
}
