//! `perto replay`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::{Connection, PgConnection};

use crate::command::{Database, perto, succeed};
use crate::support::cluster::PrivateCluster;
use crate::support::engines::{keys, redis_at, redis_url};
use crate::support::sentinels::Watched;

const FIELDS: [&str; 18] = [
    "accesses",
    "writes",
    "instances",
    "duration_s",
    "reads_per_s",
    "hits",
    "db_reads",
    "db_reads_limit",
    "db_reads_saved",
    "bound_ms",
    "reads_over_bound",
    "unverified_reads",
    "staleness_ms",
    "propagation_us",
    "latency_us",
    "repairs",
    "errors",
    "faults",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_with_faults_keeps_the_promise_writes_its_fields_and_leaves_nothing() {
    let database = Database::new();
    succeed(perto(&database.url, &redis_url()).arg("migrate"));
    let json = std::env::temp_dir().join(format!("perto-replay-{}.json", std::process::id()));
    let faults = "redis:cut@300ms+400ms,bus:drop@1s+500ms,instance2:pause@1800ms+300ms,redis:flush@2500ms,postgres:cut@3s+1s";
    let run = succeed(
        perto(&database.url, &redis_url())
            .args(["replay", "--accesses", "20000", "--rate", "4000", "--keys", "500", "--writes", "0.02"])
            .args(["--faults", faults, "--json"])
            .arg(&json),
    );
    let table = String::from_utf8_lossy(&run.stdout);
    assert!(table.contains("READS OVER THE BOUND"), "{table}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    std::fs::remove_file(&json).unwrap();
    let mut fields: Vec<&str> = report.as_object().unwrap().keys().map(String::as_str).collect();
    let mut expected: Vec<&str> = FIELDS.to_vec();
    fields.sort_unstable();
    expected.sort_unstable();
    assert_eq!(fields, expected);
    assert_eq!(report["reads_over_bound"], 0);
    assert!(report["writes"].as_u64().unwrap() > 100, "{report}");
    for fault in report["faults"].as_array().unwrap() {
        assert!(fault["reads"].as_u64().unwrap() > 0, "reads go on: {fault}");
    }
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let left: i64 = sqlx::query_scalar("select count(*) from pg_namespace where nspname like 'replay%'")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(left, 0, "a schema is left behind");
    let mut redis = redis_at(&redis_url()).await;
    let pattern = format!("perto:replay_{:08x}*", std::process::id());
    assert_eq!(keys(&mut redis, &pattern).await.unwrap(), Vec::<String>::new());
}

/// Behind Sentinels, and in a cluster, where what is between the instances and Redis is no one place.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_runs_on_what_instances_run_on() {
    let (watched, cluster) = tokio::join!(Watched::start(), PrivateCluster::start_without_replicas(&[]));
    let database = Database::new();
    succeed(perto(&database.url, &redis_url()).arg("migrate"));
    let servers = [(watched.url(), &watched.servers[..1]), (cluster.url(), &cluster.nodes[..])];
    for (url, servers) in servers {
        let json = std::env::temp_dir().join(format!("perto-replay-at-{}.json", std::process::id()));
        let small = ["replay", "--accesses", "8000", "--rate", "4000", "--keys", "500", "--writes", "0.02"];
        let faults = "redis:flush@500ms,instance2:pause@900ms+300ms,postgres:cut@1300ms+300ms";
        succeed(perto(&database.url, &url).args(small).args(["--faults", faults, "--json"]).arg(&json));
        let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        std::fs::remove_file(&json).unwrap();
        assert_eq!(report["reads_over_bound"], 0);
        assert!(report["hits"]["l2"].as_f64().unwrap() > 0.0, "{report}");
        for server in servers {
            let left = keys(&mut server.connect().await, "perto:replay*").await.unwrap();
            assert_eq!(left, Vec::<String>::new());
        }
        let refused =
            perto(&database.url, &url).args(small).args(["--faults", "bus:drop@1s+1s"]).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains("must be one server's own"), "{said}");
    }
}

#[test]
fn a_fault_that_never_ran_fails_the_replay() {
    let database = Database::new();
    succeed(perto(&database.url, &redis_url()).arg("migrate"));
    let run = perto(&database.url, &redis_url())
        .args(["replay", "--accesses", "1000", "--keys", "100", "--faults", "redis:cut@60s+1s"])
        .output()
        .unwrap();
    assert!(!run.status.success());
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(said.contains("--faults: redis:cut@60s+1s never ran"), "{said}");
}

/// A directory of its own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("perto-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// The elements of a page, each with its attributes as they are written. Every one must be closed, in order.
fn elements(page: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open: Vec<String> = Vec::new();
    let (_, mut rest) = page.split_once("<!DOCTYPE html>").unwrap();
    while let Some((text, after)) = rest.split_once('<') {
        assert!(!text.contains('>'), "a stray > in {text:?}");
        let (tag, after) = after.split_once('>').unwrap();
        rest = after;
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "closed where it isn't open");
            continue;
        }
        let (inside, closed) = tag.strip_suffix('/').map_or((tag, false), |inside| (inside, true));
        assert_eq!(inside.matches('"').count() % 2, 0, "a quote is open in <{tag}>");
        let (name, attributes) = inside.split_once(' ').unwrap_or((inside, ""));
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "<{tag}>");
        found.push((name.to_owned(), attributes.to_owned()));
        if !closed {
            open.push(name.to_owned());
        }
    }
    assert_eq!(open, Vec::<String>::new(), "never closed");
    found
}

/// What a page must be, whatever was run: one that asks for nothing from anywhere, and runs nothing.
fn self_contained(page: &str) -> Vec<(String, String)> {
    let elements = elements(page);
    for address in ["src=", "href=", "url(", "@import", "javascript:"] {
        if let Some(at) = page.find(address) {
            let around: String =
                page[..at].chars().rev().take(200).collect::<Vec<_>>().into_iter().rev().collect();
            panic!("{address} after {around}");
        }
    }
    for (name, attributes) in &elements {
        // In a text it is but a text: that of an error of a client's, say.
        let foreign = attributes.replace("http://www.w3.org/2000/svg", "");
        assert!(!foreign.contains("http://") && !foreign.contains("https://"), "<{name} {attributes}>");
        let kept = "html head meta title style body main h1 h2 p span div section table caption thead tbody tr th td details \
                    summary ul li svg desc g path rect circle text";
        assert!(kept.split_whitespace().any(|kept| kept == name), "<{name} {attributes}>");
        assert!(!attributes.contains(" on") && !attributes.starts_with("on"), "<{name} {attributes}>");
    }
    elements
}

fn count(elements: &[(String, String)], name: &str, attributes: &str) -> usize {
    elements.iter().filter(|element| element.0 == name && element.1.contains(attributes)).count()
}

/// The rows of the figures below a plot.
fn figures<'a>(page: &'a str, plot: &str) -> Vec<Vec<&'a str>> {
    let (_, section) = page.split_once(&format!("<section id=\"{plot}\">")).unwrap();
    let (section, _) = section.split_once("</section>").unwrap();
    let (_, body) = section.split_once("<tbody>").unwrap();
    let cells = |row: &'a str| -> Vec<&'a str> {
        row.split("</td>")
            .flat_map(|cell| cell.split("</th>"))
            .filter_map(|cell| Some(cell.rsplit_once('>')?.1))
            .collect()
    };
    body.lines()
        .filter(|line| line.starts_with("<tr>"))
        .map(cells)
        .map(|row| row[..row.len() - 1].to_vec())
        .collect()
}

fn replay_page(database: &Database, arguments: &[&str], page: &Path) -> String {
    succeed(perto(&database.url, &redis_url()).arg("replay").args(arguments).arg("--report").arg(page));
    std::fs::read_to_string(page).unwrap()
}

#[test]
fn a_report_has_the_plots_the_faults_and_the_verdict_and_needs_nothing_else() {
    let database = Database::new();
    succeed(perto(&database.url, &redis_url()).arg("migrate"));
    let scratch = Scratch::new("report");
    let file = scratch.0.join("replay.html");
    std::fs::write(&file, "an old one").unwrap();
    let arguments = ["--accesses", "9000", "--rate", "3000", "--keys", "500", "--writes", "0.02"];
    let faults = ["--faults", "redis:cut@500ms+700ms,postgres:cut@1500ms+1300ms"];
    let page = replay_page(&database, &[&arguments[..], &faults[..]].concat(), &file);
    assert_eq!(scratch.files(), ["replay.html"], "nothing else is left");
    let elements = self_contained(&page);
    assert_eq!(count(&elements, "section", "id="), 3);
    for plot in ["tiers", "latency", "staleness"] {
        assert_eq!(count(&elements, "section", &format!("id=\"{plot}\"")), 1, "{plot}");
        // Once for a wide screen, once for a phone.
        assert_eq!(count(&elements, "svg", &format!("aria-labelledby=\"{plot}-")), 2, "{plot}");
        assert!(count(&elements, "path", "class=\"line s0\"") >= 2);
    }
    for fault in ["redis:cut@500ms+700ms", "postgres:cut@1500ms+1300ms"] {
        assert_eq!(
            page.matches(&format!("<title>{fault}: from ")).count(),
            4,
            "two plots of two sizes: {fault}"
        );
    }
    assert_eq!(count(&elements, "rect", "class=\"band\" x=\"1.0\""), 2, "in the legends");
    assert!(count(&elements, "rect", "class=\"band\"") >= 2 + 8);
    assert!(page.contains("Reads older than the bound: 0 of "), "the verdict");
    assert!(page.contains("perto replay --keys 500 --accesses 9000 "), "the command");
    assert!(!page.contains("postgres://") && !page.contains("redis://"), "servers may have passwords");

    // The figures are of this run: reads go on through the cut of Redis, none from L2; none was loaded while Postgres
    // was cut, and what was served then was unverified in the end.
    let at = |row: &[&str]| row[0].trim_end_matches(" s").parse::<f64>().unwrap();
    let within = |rows: &[Vec<&str>], from: f64, to: f64, column: usize| -> Vec<f64> {
        let inside = rows.iter().filter(|row| at(row) >= from && at(row) < to);
        inside.map(|row| row[column].parse().unwrap_or(0.0)).collect()
    };
    let tiers = figures(&page, "tiers");
    assert!((50..=120).contains(&tiers.len()), "3 s in slices of 50 ms: {}", tiers.len());
    let reads =
        tiers.iter().flat_map(|row| &row[1..]).map(|rate| rate.parse::<f64>().unwrap() * 0.05).sum::<f64>();
    assert!((6_000.0..9_500.0).contains(&reads), "{reads}");
    assert!(within(&tiers, 0.6, 1.1, 2).iter().all(|rate| *rate < 1.0), "from L2 while Redis is cut");
    assert!(within(&tiers, 0.6, 1.1, 1).iter().sum::<f64>() > 0.0, "from L1 while Redis is cut");
    assert!(within(&tiers, 1.6, 2.7, 3).iter().all(|rate| *rate < 1.0), "loads while Postgres is cut");
    let staleness = figures(&page, "staleness");
    assert_eq!(staleness.len(), tiers.len());
    assert!(within(&staleness, 2.6, 2.8, 4).iter().sum::<f64>() > 0.0, "unverified when the bound is over");
    assert!(staleness.iter().all(|row| row[1].parse().unwrap_or(0.0) <= 1_000.0), "{staleness:?}");
    let latency = figures(&page, "latency");
    assert_eq!(latency.iter().map(|row| row[0]).collect::<Vec<_>>(), ["L1", "L2", "a load"]);
}

#[test]
fn the_name_of_a_trace_is_no_markup_in_a_report() {
    let database = Database::new();
    succeed(perto(&database.url, &redis_url()).arg("migrate"));
    let scratch = Scratch::new("hostile");
    let name = "<script>alert(\"1\")<b onload='x'>&amp; https:\u{202e}.xz";
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/trace/x86");
    let trace = scratch.0.join(name);
    std::fs::copy(kept, &trace).unwrap();
    let file = scratch.0.join("replay.html");
    let page = replay_page(&database, &[trace.to_str().unwrap(), "--accesses", "300"], &file);
    self_contained(&page);
    assert!(page.contains(
        "&lt;script&gt;alert(&quot;1&quot;)&lt;b onload=&#39;x&#39;&gt;&amp;amp; https:\u{fffd}.xz"
    ));
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_anything_runs() {
    let scratch = Scratch::new("unwritable");
    for path in [scratch.0.join("missing/replay.html"), scratch.0.clone()] {
        let begun = Instant::now();
        // Neither server is there: it is said before anybody asks them.
        let run = perto("postgres://nobody@127.0.0.1:1/none", "redis://127.0.0.1:1")
            .args(["replay", "--accesses", "1000", "--report"])
            .arg(&path)
            .output()
            .unwrap();
        assert!(!run.status.success());
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(
            said.starts_with(&format!("perto-chat: --report: {} can't be written: ", path.display())),
            "{said}"
        );
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
    assert_eq!(scratch.files(), Vec::<String>::new());
}
