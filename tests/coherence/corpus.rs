//! What the fuzzer found worth keeping (`fuzz/corpus`), without the fuzzer. It keeps traces too: `cli/src/replay/trace.rs`.

use std::path::Path;

use perto::fuzzing;

fn kept(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut count = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        run(&std::fs::read(file.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 5, "{target}: {count} inputs are kept");
}

#[test]
fn every_kept_input_of_the_fuzzer_is_decoded_or_refused() {
    kept("stored", fuzzing::stored);
    kept("hint", fuzzing::hint);
    kept("token", fuzzing::token);
    kept("snapshot", fuzzing::snapshot);
}
