//! Small-scope proofs of Perto's coherence.
//!
//! What is proven is the code itself: the very source files of `src/coherence` are compiled here, with loom's types for
//! locks and atomics. [`model`] runs the pure rules through every state of a small world; [`lease`] and [`buckets`] run what threads
//! share through every interleaving. `docs/PROOFS.md`, "Model and small-scope proofs", has the list.

pub mod buckets;
pub mod index;
pub mod lease;
pub mod model;
mod postgres;
pub mod rows;
pub mod search;
mod sync;
mod threads;

#[expect(dead_code, reason = "the proofs use most of these files, not all")]
mod coherence;
