//! Every state of every scope, and every variant that must fail.

use perto_proofs::model::{PROOFS, Variant, search};
use perto_proofs::rows;

const THREADS: usize = 2;

#[test]
fn no_state_of_any_scope_breaks_the_promise() {
    for scope in PROOFS {
        let verdict = search(*scope, None, THREADS, |_| {});
        println!("{}: {verdict}", scope.name);
        assert!(verdict.found.is_none(), "{}: {verdict}", scope.name);
        assert!(verdict.states > 10_000, "{} has become too small to prove anything", scope.name);
    }
    for scope in rows::PROOFS {
        let verdict = rows::search(*scope, None, THREADS, |_| {});
        println!("{}: {verdict}", scope.name);
        assert!(verdict.found.is_none(), "{}: {verdict}", scope.name);
        assert!(verdict.states > 10_000, "{} has become too small to prove anything", scope.name);
    }
}

/// By one thread: of several failures in equally many steps, the same one is found each time.
#[test]
fn every_broken_variant_fails() {
    let survivors: Vec<(Variant, Option<String>)> = Variant::ALL
        .into_iter()
        .filter_map(|variant| {
            let verdict = search(variant.scope(), Some(variant), 1, |_| {});
            println!("{variant:?}: {} states, {} steps", verdict.states, verdict.steps());
            let broken = verdict.found.map(|(what, _)| what);
            (broken.as_deref() != Some(variant.breaks())).then_some((variant, broken))
        })
        .collect();
    assert!(survivors.is_empty(), "not caught any more, or by something else: {survivors:?}");
    let survivors: Vec<(rows::Variant, Option<String>)> = rows::Variant::ALL
        .into_iter()
        .filter_map(|variant| {
            let verdict = rows::search(variant.scope(), Some(variant), 1, |_| {});
            println!("{variant:?}: {} states, {} steps", verdict.states, verdict.steps());
            let broken = verdict.found.map(|(what, _)| what);
            (broken.as_deref() != Some(variant.breaks())).then_some((variant, broken))
        })
        .collect();
    assert!(survivors.is_empty(), "not caught any more, or by something else: {survivors:?}");
}

/// Where the clock is read before the buckets of what a value depends on, nothing goes wrong: the lease still vouches for when the
/// read began.
#[test]
fn the_order_of_the_clock_and_of_dependencies_does_not_matter() {
    let paused =
        |scope: &&rows::Scope| ["rows-pauses", "rows-recoveries", "rows-crash"].contains(&scope.name);
    for variant in rows::Variant::HARMLESS {
        for scope in rows::PROOFS.iter().filter(paused) {
            let verdict = rows::search(*scope, Some(variant), THREADS, |_| {});
            assert!(verdict.found.is_none(), "{variant:?} in {}: {verdict}", scope.name);
        }
    }
}

/// Each variant's world is fine when nothing is broken: so it is the variant that fails.
#[test]
fn the_worlds_in_which_variants_fail_are_fine_without_them() {
    for variant in Variant::ALL {
        let verdict = search(variant.scope(), None, THREADS, |_| {});
        assert!(verdict.found.is_none(), "{variant:?}: {verdict}");
    }
    for variant in rows::Variant::ALL {
        let verdict = rows::search(variant.scope(), None, THREADS, |_| {});
        assert!(verdict.found.is_none(), "{variant:?}: {verdict}");
    }
}

/// Variants inside the bucket break a copy of it.
#[test]
fn the_copy_that_is_broken_is_a_copy() {
    for scope in PROOFS.iter().filter(|scope| ["hints", "trim"].contains(&scope.name)) {
        let (real, copy) =
            (search(*scope, None, THREADS, |_| {}), search(scope.copied(), None, THREADS, |_| {}));
        assert_eq!(real.states, copy.states);
        assert!(copy.found.is_none());
    }
}
