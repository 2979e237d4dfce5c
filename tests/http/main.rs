//! The `perto` command as a user runs it: the service over real HTTP, the replay, and what is said of bad input.
//!
//! Needs both engines: `make test`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends where it is wrong")]

#[path = "../support/support.rs"]
#[expect(dead_code, reason = "other rings use the rest")]
mod support;

mod access;
#[cfg(target_os = "linux")]
mod attack;
mod bad_input;
mod bodies;
mod command;
mod dashboard;
mod doctor;
mod draining;
mod environment;
mod fairness;
mod fleet;
mod imports;
mod inspect;
mod lines;
mod lists;
mod load;
mod messages;
mod metrics;
mod openapi;
mod outages;
mod pool;
mod refused_first;
mod replay;
mod resources;
mod restored;
mod secrets;
mod service;
mod sessions;
mod sink;
mod spelling;
mod switches;
mod tags;
mod traces;
mod useless;
