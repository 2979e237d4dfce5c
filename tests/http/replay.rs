//! `perto replay`.

use serde_json::Value;
use sqlx::{Connection, PgConnection};

use crate::command::{Database, perto, succeed};
use crate::support::engines::{keys, redis_at, redis_url};

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
    succeed(perto(&database.url, &redis_url()).args(["migrate", "--service"]));
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

#[test]
fn a_fault_that_never_ran_fails_the_replay() {
    let database = Database::new();
    succeed(perto(&database.url, &redis_url()).args(["migrate", "--service"]));
    let run = perto(&database.url, &redis_url())
        .args(["replay", "--accesses", "1000", "--keys", "100", "--faults", "redis:cut@60s+1s"])
        .output()
        .unwrap();
    assert!(!run.status.success());
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(said.contains("--faults: redis:cut@60s+1s never ran"), "{said}");
}
