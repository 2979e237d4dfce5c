//! Every interleaving of what threads share, and every broken order.

use perto_proofs::buckets::{
    Clear, Insert, Reset, Serve, hint_beside_a_reset, insert_beside_a_clear, insert_beside_an_invalidation,
    serve_beside_a_poll,
};
use perto_proofs::lease::{
    Era, Hit, Recovery, era_ends_beside_an_extension, hit_beside_a_poll, load_beside_a_recovery,
};

/// Loom panics where an interleaving fails. On a thread of its own, for it leaves things behind.
fn fails(proof: impl FnOnce() -> usize + Send + 'static) -> bool {
    std::thread::spawn(proof).join().is_err()
}

fn holds(proof: &str, interleavings: usize) {
    println!("{proof}: {interleavings} interleavings");
    assert!(interleavings > 2, "{proof}: too few to prove anything");
}

#[test]
fn in_no_interleaving_does_a_hit_pair_an_old_value_with_a_new_lease() {
    holds("hit beside a poll", hit_beside_a_poll(Hit::AsBuilt));
    assert!(fails(|| hit_beside_a_poll(Hit::LeaseLoadedAfterTheValue)));
    assert!(fails(|| hit_beside_a_poll(Hit::LeasePublishedBeforeTheEviction)));
}

#[test]
fn in_no_interleaving_does_an_extension_bring_an_era_back() {
    holds("era beside an extension", era_ends_beside_an_extension(Era::AsBuilt));
    assert!(fails(|| era_ends_beside_an_extension(Era::ExtendedInTwoSteps)));
}

#[test]
fn in_no_interleaving_does_a_load_outlive_a_recovery() {
    holds("old load beside a recovery", load_beside_a_recovery(Recovery::AsBuilt, "7:7:"));
    holds("new load beside a recovery", load_beside_a_recovery(Recovery::AsBuilt, "9:9:"));
    assert!(fails(|| load_beside_a_recovery(Recovery::EraEndedOnce, "7:7:")));
    assert!(fails(|| load_beside_a_recovery(Recovery::EraOfALoadTakenAtItsInsert, "9:9:")));
    assert!(fails(|| load_beside_a_recovery(Recovery::LeaseExtendedBeforeTheReset, "7:7:")));
}

#[test]
fn in_no_interleaving_does_an_insert_miss_an_invalidation() {
    holds("insert beside an invalidation", insert_beside_an_invalidation(Insert::AsBuilt));
    assert!(fails(|| insert_beside_an_invalidation(Insert::CheckedOutsideOfTheStripe)));
}

#[test]
fn in_no_interleaving_is_an_old_value_accepted_under_a_new_lease() {
    holds("serve beside a poll", serve_beside_a_poll(Serve::AsBuilt));
    assert!(fails(|| serve_beside_a_poll(Serve::AcceptedBeforeTheLeaseIsTaken)));
    assert!(fails(|| serve_beside_a_poll(Serve::LeasePublishedBeforeTheInvalidation)));
}

#[test]
fn in_no_interleaving_does_an_old_poll_hide_a_replayed_row() {
    holds("hint beside a reset", hint_beside_a_reset(Reset::AsBuilt));
    assert!(fails(|| hint_beside_a_reset(Reset::PollForgottenAfterTheStripes)));
    assert!(fails(|| hint_beside_a_reset(Reset::LeaseExtendedBeforeTheReplay)));
}

#[test]
fn in_no_interleaving_does_a_key_survive_the_clearing_of_its_cache() {
    holds("insert beside a clear", insert_beside_a_clear(Clear::AsBuilt));
    assert!(fails(|| insert_beside_a_clear(Clear::EpochTakenAtTheInsert)));
    assert!(fails(|| insert_beside_a_clear(Clear::LeasePublishedBeforeTheInvalidation)));
}
