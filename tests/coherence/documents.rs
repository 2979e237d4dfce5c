//! What the documents say of the tests is true.

use std::path::Path;

fn sources(folder: &Path, all: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_test_that_the_promises_and_the_proofs_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let promises = read("docs/PROMISES.md") + &read("docs/PROOFS.md");
    let mut code = String::new();
    for folder in ["src", "cli", "chat/src", "tests", "proofs"] {
        sources(&root.join(folder), &mut code);
    }
    let is_name = |word: &&str| {
        word.len() > 20 && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    let named: Vec<&str> = promises.split('`').filter(is_name).collect();
    assert!(named.len() > 50, "only {} are named", named.len());
    let missing: Vec<&&str> = named.iter().filter(|name| !code.contains(&format!("fn {name}("))).collect();
    assert!(
        missing.is_empty(),
        "named in docs/PROMISES.md or docs/PROOFS.md, and nowhere else: {missing:#?}"
    );
}

/// The words in backticks in one column of the table of promises.
fn column(promises: &str, at: usize) -> Vec<String> {
    let rows = promises.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    let cells = rows.take_while(|line| line.starts_with('|')).map(|row| row.split('|').nth(at).unwrap());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

#[test]
fn every_variant_of_the_model_and_every_fault_of_the_chaos_runs_that_the_promises_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let promises = std::fs::read_to_string(root.join("docs/PROMISES.md")).unwrap();
    for (at, folder, least) in [(2, "proofs/src", 15), (5, "tests/chaos", 15)] {
        let mut code = String::new();
        sources(&root.join(folder), &mut code);
        let named = column(&promises, at);
        assert!(named.len() >= least, "only {} are named of {folder}", named.len());
        let defined = |name: &String| {
            // A variant of an enum, or the name of a scope or a fault.
            code.contains(&format!("\n    {name},")) || code.contains(&format!("\"{name}\""))
        };
        let missing: Vec<&String> = named.iter().filter(|name| !defined(name)).collect();
        assert!(missing.is_empty(), "named in docs/PROMISES.md, and not in {folder}: {missing:#?}");
    }
}
