#![no_main]

#[allow(dead_code, reason = "what is generated needs no fuzzing")]
#[path = "../../cli/src/replay/trace.rs"]
mod trace;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(trace) = trace::Trace::read(bytes, &"fuzz", None, Some(10_000)) {
        assert!(trace.accesses.iter().all(|at| (*at as usize) < trace.ids.len()));
    }
});
