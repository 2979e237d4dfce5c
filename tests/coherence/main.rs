//! The promises, on simulated tiers and virtual time. Everything but the tiers is the real code.
//!
//! The arithmetic: the bound is 1 s. While hints come, polls are 250 ms apart, else 75 ms; a poll in doubt comes
//! within 5 ms. So a write is seen at once by its hint, within 260 ms by the log, and an instance that can't read
//! the log stops calling anything fresh 1 s after its last poll was sent.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test ends where it is wrong")]

mod asks;
mod audits;
mod claims;
mod computed;
mod conditional;
mod corpus;
mod dependencies;
mod documents;
mod epochs;
mod forged;
mod gathered;
mod hints;
mod histories;
mod holes;
mod house;
mod inspect;
mod loads;
mod outages;
mod panics;
mod pauses;
mod remotes;
mod replays;
mod replicas;
mod ring;
mod spellings;
mod stale;
mod starting;
mod switches;
mod tokens;
mod troubles;
mod values;
mod watching;
