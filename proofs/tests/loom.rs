//! Every interleaving of what threads share, and every broken order.

use perto_proofs::buckets::{
    Beside, Clear, Dependency, Insert, Of, Off, OldHint, Reset, Serve, dependency_beside,
    hint_beside_a_reset, insert_beside_a_clear, insert_beside_an_invalidation,
    insert_beside_l1_that_goes_off, old_hint_beside_a_reset, serve_beside_a_poll,
};
use perto_proofs::index::{Gone, Put, puts_beside};
use perto_proofs::lease::{
    Beginning, Era, Granted, Hit, Polled, Recovery, Start, Token, beginning_beside_a_recovery,
    era_ends_beside_an_extension, granted_token_beside_a_poll, hit_beside_a_poll, load_beside_a_recovery,
    old_poll_beside_a_recovery, start_beside_a_poll, token_beside_a_recovery,
};

/// Loom panics where an interleaving fails. On a thread of its own, for it leaves things behind.
#[track_caller]
fn fails(promise: &str, proof: impl FnOnce() -> usize + Send + 'static) {
    let Err(panic) = std::thread::spawn(proof).join() else { panic!("holds: {promise}") };
    let said = match panic.downcast::<String>() {
        Ok(said) => *said,
        Err(panic) => panic.downcast::<&str>().map(|said| said.to_string()).unwrap_or_default(),
    };
    assert!(said.contains(promise), "another thing fails: {said:?}, not {promise:?}");
}

fn holds(proof: &str, interleavings: usize) {
    println!("{proof}: {interleavings} interleavings");
    assert!(interleavings > 2, "{proof}: too few to prove anything");
}

#[test]
fn in_no_interleaving_does_a_hit_pair_an_old_value_with_a_new_lease() {
    holds("hit beside a poll", hit_beside_a_poll(Hit::AsBuilt));
    fails("an old value under a new lease", || hit_beside_a_poll(Hit::LeaseLoadedAfterTheValue));
    fails("an old value under a new lease", || hit_beside_a_poll(Hit::LeasePublishedBeforeTheEviction));
}

#[test]
fn in_no_interleaving_does_a_hit_miss_a_write_that_another_spelling_of_its_key_is_named_by() {
    holds("hit that asks its bucket", hit_beside_a_poll(Hit::AskingTheBucket));
    fails("an old value under a new lease", || hit_beside_a_poll(Hit::BucketAskedBeforeTheLease));
}

#[test]
fn in_no_interleaving_does_an_extension_bring_an_era_back() {
    holds("era beside an extension", era_ends_beside_an_extension(Era::AsBuilt));
    fails("an era came back to life", || era_ends_beside_an_extension(Era::ExtendedInTwoSteps));
}

#[test]
fn in_no_interleaving_does_a_load_outlive_a_recovery() {
    holds("old load beside a recovery", load_beside_a_recovery(Recovery::AsBuilt, "7:7:"));
    holds("new load beside a recovery", load_beside_a_recovery(Recovery::AsBuilt, "9:9:"));
    fails("a value from before the recovery is served after it", || {
        load_beside_a_recovery(Recovery::EraEndedOnce, "7:7:")
    });
    fails("a value from before the recovery is served after it", || {
        load_beside_a_recovery(Recovery::EraOfALoadTakenAtItsInsert, "9:9:")
    });
    fails("a value misses what the floor contains", || {
        load_beside_a_recovery(Recovery::LeaseExtendedBeforeTheReset, "7:7:")
    });
}

#[test]
fn in_no_interleaving_does_an_insert_miss_an_invalidation() {
    holds("insert beside an invalidation", insert_beside_an_invalidation(Insert::AsBuilt));
    fails("L1 holds what misses an applied invalidation", || {
        insert_beside_an_invalidation(Insert::CheckedOutsideOfTheStripe)
    });
}

#[test]
fn in_no_interleaving_is_an_old_value_accepted_under_a_new_lease() {
    holds("serve beside a poll", serve_beside_a_poll(Serve::AsBuilt));
    fails("an old value is served under a new lease", || {
        serve_beside_a_poll(Serve::AcceptedBeforeTheLeaseIsTaken)
    });
    fails("an old value is served under a new lease", || {
        serve_beside_a_poll(Serve::LeasePublishedBeforeTheInvalidation)
    });
    fails("an old value is served under a new lease", || {
        serve_beside_a_poll(Serve::HintForgottenBeforeTheInvalidation)
    });
}

#[test]
fn in_no_interleaving_does_a_recovery_hide_what_an_entry_misses() {
    for what in [Beside::APoll, Beside::ARecovery] {
        holds("dependency beside a poll or a recovery", dependency_beside(Dependency::AsBuilt, what));
    }
    let promise = "a value that misses what its lease has seen is served";
    fails(promise, || dependency_beside(Dependency::EraNotReadAgain, Beside::ARecovery));
    fails(promise, || dependency_beside(Dependency::JudgedBeforeTheLease, Beside::APoll));
}

#[test]
fn in_no_interleaving_does_an_old_poll_hide_a_replayed_row() {
    holds("hint beside a reset", hint_beside_a_reset(Reset::AsBuilt));
    fails("a replayed row is forgotten", || hint_beside_a_reset(Reset::PollForgottenAfterTheStripes));
    fails("a value of the new epoch misses a replayed row", || {
        hint_beside_a_reset(Reset::LeaseExtendedBeforeTheReplay)
    });
}

#[test]
fn in_no_interleaving_does_a_key_survive_the_clearing_of_its_cache() {
    holds("insert beside a clear", insert_beside_a_clear(Clear::AsBuilt));
    fails("a key has survived", || insert_beside_a_clear(Clear::EpochTakenAtTheInsert));
    fails("a key has survived", || insert_beside_a_clear(Clear::LeasePublishedBeforeTheInvalidation));
}

#[test]
fn in_no_interleaving_does_a_key_stay_in_an_l1_that_is_off() {
    holds("insert beside L1 that goes off", insert_beside_l1_that_goes_off(Off::AsBuilt));
    let promise = "a key is served though L1 is off";
    fails(promise, || insert_beside_l1_that_goes_off(Off::EpochEndedBeforeFills));
    fails(promise, || insert_beside_l1_that_goes_off(Off::ClosedAskedBeforeTheEpoch));
}

#[test]
fn in_no_interleaving_is_an_old_epoch_paired_with_a_new_era() {
    holds("beginning beside a recovery", beginning_beside_a_recovery(Beginning::AsBuilt));
    fails("an old epoch is paired with a new era", || beginning_beside_a_recovery(Beginning::EpochThenEra));
    fails("a new epoch is paired with an old era", || beginning_beside_a_recovery(Beginning::EraThenEpoch));
}

#[test]
fn in_no_interleaving_does_a_token_of_a_new_epoch_find_a_value_of_the_old_one() {
    holds("token beside a recovery", token_beside_a_recovery(Token::AsBuilt));
    fails("a token finds a value from before its write", || {
        token_beside_a_recovery(Token::EpochReadAfterTheLease)
    });
}

#[test]
fn in_no_interleaving_does_an_old_poll_satisfy_a_token_of_a_new_epoch() {
    holds("old poll beside a recovery", old_poll_beside_a_recovery(Polled::AsBuilt));
    let promise = "an old poll satisfies a token of the new epoch";
    fails(promise, || old_poll_beside_a_recovery(Polled::LeaseNotAsked));
    fails(promise, || old_poll_beside_a_recovery(Polled::LeaseAskedBeforeTheEpoch));
}

#[test]
fn in_no_interleaving_is_a_token_granted_an_old_value() {
    holds("granted token beside a poll", granted_token_beside_a_poll(Granted::AsBuilt));
    fails("a token is granted an old value", || granted_token_beside_a_poll(Granted::AskedAfterTheHit));
    fails("a token is granted an old value", || {
        granted_token_beside_a_poll(Granted::PollPublishedBeforeItsRows)
    });
}

#[test]
fn in_no_interleaving_does_a_read_begin_as_of_a_poll_before_the_one_that_granted_its_token() {
    holds("start beside a poll", start_beside_a_poll(Start::AsBuilt));
    fails("a read begins as of a poll before its token", || {
        start_beside_a_poll(Start::BegunBeforeTheTokenIsGranted)
    });
}

#[test]
fn in_no_interleaving_does_a_hint_of_an_old_epoch_outlive_a_reset() {
    for of in [Of::AKey, Of::TheWholeCache] {
        holds("old hint beside a reset", old_hint_beside_a_reset(OldHint::AsBuilt, of));
        fails("a new value is refused", move || {
            old_hint_beside_a_reset(OldHint::EpochComparedOutsideOfTheStripe, of)
        });
    }
}

#[test]
fn in_no_interleaving_does_the_index_keep_what_moka_has_let_go() {
    for gone in [Gone::ForItsSize, Gone::Removed, Gone::RemovedExactly] {
        holds("puts beside what goes", puts_beside(gone, Put::AsBuilt));
        fails("the index keeps what moka has let go", move || puts_beside(gone, Put::MokaFirst));
    }
    for gone in [Gone::Removed, Gone::RemovedExactly] {
        fails("the index keeps what moka has let go", move || puts_beside(gone, Put::RemovedUntold));
    }
}
