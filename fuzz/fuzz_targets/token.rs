#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| perto::fuzzing::token(bytes));
