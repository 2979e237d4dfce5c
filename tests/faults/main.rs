//! Faults on real engines: what a caller sees of Redis and Postgres when they are cut off, killed, emptied, restored or
//! slow, and when messages and processes get lost.
//!
//! Needs both engines and their programs: `make test`. A wait in a test holds a fault for a stated time; everything else
//! waits for something to be so.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends where it is wrong")]

#[cfg(feature = "tls")]
#[path = "../support/front.rs"]
mod front;
#[path = "../support/support.rs"]
#[expect(dead_code, reason = "other rings use the rest")]
mod support;
mod world;

mod agreement;
mod asks;
mod at_commit;
mod audits;
mod cluster;
mod columns;
mod credentials;
mod declaring;
mod epochs;
mod fixed_texts;
mod forged;
mod garbage;
mod hints;
mod keys;
mod lending;
mod loads;
mod lying_redis;
mod many_rows;
mod pooler;
mod postgres_down;
mod publications;
mod race;
mod redis_down;
mod releases;
mod replays;
mod replicas;
mod round_trips;
mod sentinels;
mod stale_fills;
mod starting;
mod states;
mod switches;
#[cfg(feature = "tls")]
mod tls;
mod tokens;
mod traffic;
mod triggers;
#[cfg(target_os = "linux")]
mod undeclared;
mod useless;
mod useless_redis;
mod watched;
mod writes;
