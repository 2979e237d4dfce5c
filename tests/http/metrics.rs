//! `/metrics`, as Prometheus reads it. What it says is left in `target/metrics.txt`, for `promtool check metrics`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use crate::command::{Database, Served, seeded};
use crate::resources::CHAT;
use crate::service::{answer, request, two_instances};
use crate::support::wait::eventually;

#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: String,
    /// Name, labels and value of each line.
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

/// Panics at whatever is not as the format demands.
fn parse(text: &str) -> HashMap<String, Family> {
    let mut families: HashMap<String, Family> = HashMap::new();
    let mut current = String::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or_else(|| panic!("no help: {line}"));
            let family = Family { help: help.to_owned(), ..Family::default() };
            assert!(families.insert(name.to_owned(), family).is_none(), "{name} comes twice");
            name.clone_into(&mut current);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current, "{line}");
            families.get_mut(name).unwrap().kind = kind.to_owned();
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = match series.split_once('{') {
                None => (series, ""),
                Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
            };
            let own = ["", "_bucket", "_sum", "_count"].iter().any(|end| *name == format!("{current}{end}"));
            assert!(own, "{line} is not of {current}");
            let labels = labels.split_terminator(',').map(|label| {
                let (key, value) = label.split_once('=').unwrap();
                let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap();
                assert!(key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'), "{line}");
                (key.to_owned(), value.to_owned())
            });
            let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            families.get_mut(&current).unwrap().samples.push((name.to_owned(), labels.collect(), value));
        }
    }
    families
}

async fn scrape(served: &Served) -> (String, HashMap<String, Family>) {
    let response = request(served, "GET", "/metrics", "", "").await;
    assert_eq!(response.status, 200);
    assert!(response.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let families = parse(&response.text);
    (response.text, families)
}

async fn used() -> (Database, Served, Served) {
    let (database, a, b) = two_instances();
    let paths = [
        format!("/api/v1/chats/{CHAT}/messages"),
        "/api/v1/companies/1".to_owned(),
        "/api/v1/users/1".to_owned(),
        "/api/v1/companies/1/contacts/20".to_owned(),
        "/api/v1/companies/1/contacts/by-phone/910000020".to_owned(),
    ];
    for served in [&a, &b] {
        for path in &paths {
            for _ in 0..2 {
                request(served, "GET", path, "", "").await;
            }
        }
    }
    request(&a, "PATCH", "/api/v1/companies/1", "", r#"{"name":"Other"}"#).await;
    eventually("the hint has come", async || {
        sum(&scrape(&b).await.1, "perto_hints_total", "perto_outcome", "received") > 0.0
    })
    .await;
    (database, a, b)
}

/// Of all samples with a label.
fn sum(families: &HashMap<String, Family>, name: &str, label: &str, value: &str) -> f64 {
    let samples = families.get(name).unwrap_or_else(|| panic!("no {name}")).samples.iter();
    samples
        .filter(|(_, labels, _)| labels.get(label).is_some_and(|given| given == value))
        .map(|(.., v)| v)
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_prometheus_reads_is_well_formed_and_says_what_happened() {
    let (_database, a, b) = used().await;
    let (text, families) = scrape(&b).await;
    let elsewhere = b"GET /metrics HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n";
    assert_eq!(answer(&b, elsewhere).await.status, 403, "no keys are configured");
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join("../metrics.txt"), &text).unwrap();
    for (name, family) in &families {
        assert!(family.help.len() > 10 && family.help.ends_with('.'), "{name}: {}", family.help);
        assert_eq!(name.ends_with("_total"), family.kind == "counter", "{name}");
        if family.kind == "histogram" {
            are_cumulative(name, family);
        }
    }
    // Each company was read twice on each instance, and written on the other.
    let company = |tier: &str| {
        let lookups = families["perto_lookups_total"].samples.iter();
        let of = |labels: &BTreeMap<String, String>| {
            labels["perto_cache"] == "company"
                && labels["perto_tier"] == tier
                && labels["perto_outcome"] == "hit"
        };
        lookups.filter(|(_, labels, _)| of(labels)).map(|(.., value)| value).sum::<f64>()
    };
    assert!(company("l1") >= 1.0 && company("l1") + company("l2") + company("load") >= 2.0);
    assert_eq!(sum(&families, "perto_state", "perto_state", "coherent"), 1.0);
    let states: f64 = families["perto_state"].samples.iter().map(|(.., value)| value).sum();
    assert_eq!(states, 1.0, "it is in one state");
    assert_eq!(families["perto_bound_seconds"].samples[0].2, 1.0);
    assert!(families["perto_lease_age_seconds"].samples[0].2 < 1.0);
    assert!(sum(&families, "http_server_request_duration_seconds", "http_request_method", "GET") > 0.0);
    let written = scrape(&a).await.1;
    assert_eq!(sum(&written, "perto_hints_total", "perto_outcome", "published"), 1.0);
    let propagated = families["perto_propagation_seconds"].samples.iter();
    let count =
        propagated.filter(|(name, ..)| name.ends_with("_count")).map(|(.., value)| value).sum::<f64>();
    assert_eq!(count, 1.0);
}

fn are_cumulative(name: &str, family: &Family) {
    let mut series: HashMap<Vec<(String, String)>, (f64, f64)> = HashMap::new();
    let without_bound = |labels: &BTreeMap<String, String>| -> Vec<(String, String)> {
        labels
            .iter()
            .filter(|(key, _)| *key != "le")
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    for (sample, labels, value) in &family.samples {
        let (bound, below) = series.entry(without_bound(labels)).or_insert((0.0, 0.0));
        match labels.get("le") {
            Some(le) => {
                let le = if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() };
                assert!(le > *bound && *value >= *below, "{name} {labels:?}");
                (*bound, *below) = (le, *value);
            }
            None if sample.ends_with("_count") => assert_eq!(value, below, "{name} {labels:?}"),
            None => assert!(sample.ends_with("_sum") && *bound == f64::INFINITY, "{name} {labels:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_few_whatever_is_asked_for() {
    let database = seeded();
    let a = Served::start(&database, "a");
    let series = async || scrape(&a).await.1.values().map(|family| family.samples.len()).sum::<usize>();
    let ask = async |n: u32| {
        for path in [
            format!("/api/v1/companies/{n}"),
            format!("/api/v1/companies/1/contacts/by-phone/9100{n:05}"),
            format!("/api/v1/no-such-thing-{n}"),
        ] {
            request(&a, "GET", &path, "", "").await;
            request(&a, &format!("METHOD{n}"), &path, "", "").await;
        }
    };
    for n in 0..3 {
        ask(n).await;
    }
    let before = series().await;
    for n in 3..60 {
        ask(n).await;
    }
    assert_eq!(series().await, before, "what is asked for makes no series");
    let known = BTreeSet::from([
        "perto_cache",
        "perto_tier",
        "perto_outcome",
        "perto_state",
        "perto_kind",
        "perto_limit",
        "http_request_method",
        "http_response_status_code",
        "db_client_connection_pool_name",
        "db_client_connection_state",
        "le",
    ]);
    for (name, family) in scrape(&a).await.1 {
        let labels = family.samples.iter().flat_map(|(_, labels, _)| labels.keys());
        let unknown: Vec<_> = labels.filter(|label| !known.contains(label.as_str())).collect();
        assert!(name == "target_info" || unknown.is_empty(), "{name}: {unknown:?}");
    }
}

/// The table of what can be wrong: whoever is woken by one name finds the others.
#[tokio::test(flavor = "multi_thread")]
async fn each_state_of_the_table_has_the_alert_the_metric_the_line_and_the_check_that_it_names() {
    let read = |path: &str| {
        std::fs::read_to_string(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(path)).unwrap()
    };
    let (operations, api) = (read("docs/OPERATIONS.md"), read("docs/API.md"));
    let doctor: String =
        ["declared", "keys", "postgres", "redis", "redis/scripts", "replication", "settings", "tables"]
            .map(|file| read(&format!("cli/src/doctor/{file}.rs")))
            .concat();
    let database = seeded();
    let a = Served::start(&database, "a");
    request(&a, "GET", "/api/v1/companies/1", "", "").await;
    // What Redis says of itself is there once it has answered.
    eventually("Redis has answered", async || scrape(&a).await.1.contains_key("perto_redis_memory_ratio"))
        .await;
    let (_, families) = scrape(&a).await;
    let (_, table) = operations.split_once("| State | Alert | Metric | Log | Doctor |\n").unwrap();
    let rows: Vec<&str> = table.lines().skip(1).take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 20, "{}", rows.len());
    let is_trouble = |name: &str| perto::TroubleKind::ALL.iter().any(|kind| kind.name() == name);
    let mut told = BTreeSet::new();
    for row in rows {
        let cells: Vec<Vec<&str>> =
            row.split(" |").skip(1).map(|cell| cell.split('`').skip(1).step_by(2).collect()).collect();
        let [alerts, metrics, lines, checks, ..] = &cells[..] else { panic!("{row}") };
        assert!(!alerts.is_empty() && !metrics.is_empty(), "{row}");
        for alert in alerts {
            assert!(api.contains(&format!("\n| `{alert}` |")), "docs/API.md has no {alert}");
            assert!(operations.contains(&format!("\n### {alert}\n")), "there is no runbook of {alert}");
            told.insert(*alert);
        }
        for metric in metrics {
            assert!(families.contains_key(*metric), "there is no metric {metric}");
            assert!(
                operations.matches(&format!("`{metric}")).count() > 1,
                "{metric} is not in the table of metrics"
            );
        }
        for line in lines {
            let (kind, name) = line.split_once('=').unwrap();
            assert!(alerts.contains(&name), "{line} is of another row");
            assert_eq!(kind == "trouble", is_trouble(name), "{line}");
        }
        for check in checks {
            let quoted = format!("\"{check}\"");
            assert!(doctor.contains(&quoted), "the doctor has no check {check}");
        }
    }
    for kind in perto::TroubleKind::ALL {
        assert!(told.contains(kind.name()), "the table says nothing of {kind}");
        let samples = &families["perto_troubles"].samples;
        let of_it: Vec<f64> = samples
            .iter()
            .filter(|(_, labels, _)| labels.get("perto_kind").is_some_and(|given| given == kind.name()))
            .map(|(.., count)| *count)
            .collect();
        assert_eq!(of_it, [0.0], "{kind} in a new instance");
    }
}
