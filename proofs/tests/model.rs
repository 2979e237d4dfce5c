//! Every state of every scope, and every broken variant.

use perto_proofs::model::{self, PROOFS, Variant};

#[test]
fn try_it() {
    for variant in Variant::ALL {
        let verdict = model::search(variant.scope(), Some(variant), 2);
        match verdict.found {
            Some((what, steps)) => println!(
                "{variant:?}: {} states {:?}: {what}\n   {}",
                verdict.states,
                verdict.took,
                steps.join("\n   ")
            ),
            None => println!("{variant:?}: NOT FOUND in {} states", verdict.states),
        }
    }
    for scope in PROOFS {
        let verdict = model::search(*scope, None, 2);
        println!(
            "{}: {} states, depth {}, {:?}, {:?}",
            scope.name, verdict.states, verdict.depth, verdict.took, verdict.found
        );
    }
}
