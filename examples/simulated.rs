//! A test of one's own code without engines: tiers in memory, with faults, and a clock that doesn't wait.
//!
//! `cargo run --example simulated --features test-util`. In a project it is a `#[tokio::test(start_paused = true)]`.
#![expect(clippy::print_stdout, reason = "an example shows something")]

use perto::sim::Sim;
use perto::{Cache, Freshness};

/// One's own code: it greets by name, and must not greet by a name that is long changed.
async fn greeting(users: &Cache<u64, String>, id: u64) -> Result<String, perto::Error> {
    let read = users.get(&id).await?;
    let name = read.value().map_or("stranger", String::as_str);
    Ok(match read.freshness {
        Freshness::Fresh => format!("Hello {name}"),
        _ => format!("Hello, I think, {name}"),
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tokio::time::pause();
    let sim = Sim::new(1);
    let node = sim.node();
    let perto = node.builder("test").build()?;
    let users = perto.cache("user").loader(sim.postgres.loader("user").function())?;
    perto.start().await?;
    perto.ready().await?;

    println!("{}", greeting(&users, 7).await?);
    sim.postgres.write("user", &7_u64, &"Ada")?;
    // Longer than the bound, and no time at all: the clock is the simulator's.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    println!("{}", greeting(&users, 7).await?);

    // The log can't be read for longer than the bound: nothing is called fresh.
    node.log.faults.cut();
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    println!("{}", greeting(&users, 7).await?);
    perto.shutdown().await;
    Ok(())
}
