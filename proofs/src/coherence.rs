//! Perto's own files, over the types of [`crate::sync`].

#[path = "../../src/coherence/buckets.rs"]
pub(crate) mod buckets;
#[path = "../../src/coherence/known.rs"]
pub(crate) mod known;
#[path = "../../src/coherence/lease.rs"]
pub(crate) mod lease;
#[path = "../../src/coherence/poll.rs"]
pub(crate) mod poll;
#[path = "../../src/coherence/rules.rs"]
pub(crate) mod rules;
#[path = "../../src/coherence/snapshot.rs"]
pub(crate) mod snapshot;
#[path = "../../src/coherence/spelling.rs"]
pub(crate) mod spelling;
#[allow(rustdoc::broken_intra_doc_links, reason = "of the library")]
#[path = "../../src/coherence/token.rs"]
pub(crate) mod token;
#[path = "../../src/coherence/verdict.rs"]
pub(crate) mod verdict;
