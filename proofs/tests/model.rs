//! Every state of every scope, and every variant that must fail.

use perto_proofs::model::{PROOFS, Variant, search};

const THREADS: usize = 2;

#[test]
fn no_state_of_any_scope_breaks_the_promise() {
    for scope in PROOFS {
        let verdict = search(*scope, None, THREADS, |_| {});
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
}

/// Each variant's world is fine when nothing is broken: so it is the variant that fails.
#[test]
fn the_worlds_in_which_variants_fail_are_fine_without_them() {
    for variant in Variant::ALL {
        let verdict = search(variant.scope(), None, THREADS, |_| {});
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
