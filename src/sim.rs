//! A Postgres, a Redis and clocks that live in memory and misbehave on command: several instances in one process,
//! for tests.
//!
//! The simulated parts keep what the protocol rests on, and nothing more: snapshots as Postgres computes them, rows
//! that commit with their log, tombstones by the rules of the scripts that Redis runs. All waits are tokio's, so
//! under paused time (`#[tokio::test(start_paused = true)]`) an hour takes a millisecond. Which messages are lost or
//! late follows from a seed.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use perto::{Cache, Freshness, sim::Sim};
//!
//! let sim = Sim::new(7);
//! let node = sim.node(); // one for each instance
//! let perto = node.builder("shop").build()?;
//! let names: Cache<u64, String> = perto.cache("name").loader(sim.postgres.loader("name").function())?;
//! perto.start().await?;
//!
//! assert_eq!(names.get(&7).await?.value(), None);
//! let written = sim.postgres.write("name", &7, &"Ada")?;
//! perto.announce(written.token, &written.changes).await;
//! let read = names.get(&7).await?;
//! assert_eq!((read.value().map(String::as_str), read.freshness), (Some("Ada"), Freshness::Fresh));
//!
//! node.remote.faults.cut(); // reads go on, by loads
//! # perto.shutdown().await;
//! # Ok(()) }
//! ```

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::instance::{Perto, PertoBuilder};

mod bus;
mod clock;
mod faults;
mod loader;
mod log;
mod postgres;
mod remote;

pub use bus::SimBus;
pub use clock::SimClock;
pub use faults::{Dice, Down, Faults, Gate};
pub use loader::SimLoader;
pub use log::SimLog;
pub use postgres::{Aborted, Rows, SimPostgres, SimTransaction, Written};
pub use remote::{Dump, SimRemote};

/// One database and one Redis, to which any number of instances connect.
#[derive(Debug)]
pub struct Sim {
    /// The database.
    pub postgres: SimPostgres,
    /// Redis as an operator sees it. Its faults are this connection's only: each [`Node`] has its own.
    pub remote: SimRemote,
    bus: SimBus,
    origin: Instant,
    dice: Mutex<Dice>,
}

/// What one instance sees of the world: a clock, and three connections with faults of their own.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its clock.
    pub clock: Arc<SimClock>,
    /// Its way to the log.
    pub log: Arc<SimLog>,
    /// Its way to L2.
    pub remote: Arc<SimRemote>,
    /// Its way to the bus.
    pub bus: Arc<SimBus>,
}

impl Sim {
    /// An empty world. The seed decides which messages a share of losses loses, and how late late ones are.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        Self {
            postgres: SimPostgres::new(),
            remote: SimRemote::new(dice.roll()),
            bus: SimBus::new(dice.roll()),
            origin: Instant::now(),
            dice: Mutex::new(dice),
        }
    }

    /// The connections of one more instance.
    #[must_use]
    pub fn node(&self) -> Node {
        let mut dice = self.dice.lock();
        Node {
            clock: Arc::new(SimClock::since(self.origin)),
            log: Arc::new(self.postgres.log(dice.roll())),
            remote: Arc::new(self.remote.another(dice.roll())),
            bus: Arc::new(self.bus.another(dice.roll())),
        }
    }
}

impl Node {
    /// The settings of an instance that is connected here.
    pub fn builder(&self, app: &str) -> PertoBuilder {
        Perto::builder(app)
            .clock(Arc::clone(&self.clock) as _)
            .log(Arc::clone(&self.log) as _)
            .remote(Arc::clone(&self.remote) as _)
            .bus(Arc::clone(&self.bus) as _)
            .hash_seed(0)
    }

    /// Cuts the instance off from everything.
    pub fn cut(&self) {
        for faults in self.faults() {
            faults.cut();
        }
    }

    /// Leaves every operation of the instance unanswered.
    pub fn hang(&self) {
        for faults in self.faults() {
            faults.hang();
        }
    }

    /// Ends every fault of the instance's connections.
    pub fn heal(&self) {
        for faults in self.faults() {
            faults.heal();
        }
    }

    fn faults(&self) -> [&Faults; 3] {
        [&self.log.faults, &self.remote.faults, &self.bus.faults]
    }
}
