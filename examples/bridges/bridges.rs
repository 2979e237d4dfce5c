//! What each example shows. No engines: its tiers lie in memory. Examples are built by `cargo test` without `--test`; else by
//! `cargo build -p perto-bridges --examples`.
#![expect(clippy::unwrap_used, reason = "a test that unwraps nothing fails")]

use std::process::Command;

fn prints(example: &str) -> String {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().unwrap().parent().unwrap().join("examples").join(example);
    let built = "is not built: cargo build -p perto-bridges --examples";
    assert!(program.exists(), "{} {built}", program.display());
    let output = Command::new(program).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn what_a_cache_counts_is_what_prometheus_gets_of_the_metrics_crate() {
    let said = prints("with_metrics");
    for line in [
        r#"perto_reads_total{cache="user",tier="l1"} 2"#,
        r#"perto_reads_total{cache="user",tier="l2"} 0"#,
        r#"perto_reads_total{cache="user",tier="load"} 1"#,
        r#"perto_loads_total{cache="user",outcome="all"} 1"#,
        r#"perto_loads_total{cache="user",outcome="failed"} 0"#,
        r#"perto_read_seconds_count{cache="user",tier="Load"} 1"#,
        r#"perto_l1_entries{cache="user"} 1"#,
        "perto_coherent 1",
        "perto_troubles 0",
    ] {
        assert!(said.lines().any(|said| said == line), "no {line} in\n{said}");
    }
}

#[test]
fn each_read_and_each_load_has_a_span_that_says_what_it_found() {
    let said = prints("with_tracing");
    let lines: Vec<_> = said.lines().filter(|line| line.contains("close")).collect();
    let found = |part: &str, more: &str| {
        lines.iter().filter(|line| line.contains(part) && line.contains(more)).count()
    };
    assert_eq!(found("cache.load{cache=\"user\" keys=1}", ""), 1, "{said}");
    assert_eq!(found("cache.get{cache=\"user\" tier=Load freshness=Fresh}", ""), 1, "{said}");
    assert_eq!(found("cache.get{cache=\"user\" tier=Local freshness=Fresh}", ""), 1, "{said}");
}

/// To copy, they must be short.
#[test]
fn each_has_at_most_sixty_lines() {
    for (name, text) in
        [("with_metrics", include_str!("with_metrics.rs")), ("with_tracing", include_str!("with_tracing.rs"))]
    {
        let lines = text.lines().count();
        assert!(lines <= 60, "{name} has {lines}");
    }
}
