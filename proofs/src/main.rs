//! `make prove`: larger scopes, and counterexamples of broken variants.

use perto_proofs::model::{LARGER, PROOFS, Scope, Variant, search};

fn main() {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    for variant in Variant::ALL.into_iter().filter(|variant| wanted.contains(&format!("{variant:?}"))) {
        println!("{variant:?}: {}", search(variant.scope(), Some(variant), threads, |_| {}));
    }
    let scopes: Vec<&Scope> = PROOFS.iter().chain(LARGER).filter(|scope| is_wanted(scope.name)).collect();
    if scopes.is_empty() && wanted.is_empty() {
        return;
    }
    let mut failed = false;
    for scope in scopes {
        eprintln!("{}: {} ...", scope.name, scope.about);
        let verdict = search(*scope, None, threads, |states| eprintln!("  {states} states so far"));
        println!("{:<18} {verdict}", scope.name);
        failed |= verdict.found.is_some();
    }
    if failed {
        std::process::exit(1);
    }
}
