//! `make prove`: larger scopes, and counterexamples of broken variants.

use perto_proofs::search::Verdict;
use perto_proofs::{model, rows};

/// A scope of either model, not yet searched.
struct Proof {
    name: &'static str,
    about: &'static str,
    search: Box<dyn Fn(usize) -> Verdict>,
}

fn main() {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let names = |variant: &dyn std::fmt::Debug| wanted.contains(&format!("{variant:?}"));
    for variant in model::Variant::ALL.into_iter().filter(|variant| names(variant)) {
        println!("{variant:?}: {}", model::search(variant.scope(), Some(variant), threads, |_| {}));
    }
    for variant in
        rows::Variant::ALL.into_iter().chain(rows::Variant::HARMLESS).filter(|variant| names(variant))
    {
        println!("{variant:?}: {}", rows::search(variant.scope(), Some(variant), threads, |_| {}));
    }
    let progress = |states| eprintln!("  {states} states so far");
    let of_one_key = model::PROOFS.iter().chain(model::LARGER).map(|scope| Proof {
        name: scope.name,
        about: scope.about,
        search: Box::new(move |threads| model::search(*scope, None, threads, progress)),
    });
    let of_rows = rows::PROOFS.iter().chain(rows::LARGER).map(|scope| Proof {
        name: scope.name,
        about: scope.about,
        search: Box::new(move |threads| rows::search(*scope, None, threads, progress)),
    });
    let mut failed = false;
    for proof in of_one_key.chain(of_rows) {
        if !(wanted.is_empty() || wanted.iter().any(|wanted| wanted == proof.name)) {
            continue;
        }
        eprintln!("{}: {} ...", proof.name, proof.about);
        let verdict = (proof.search)(threads);
        println!("{:<18} {verdict}", proof.name);
        failed |= verdict.found.is_some();
    }
    if failed {
        std::process::exit(1);
    }
}
