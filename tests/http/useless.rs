//! Connections of the service that say that they are of no use: it leaves them, and serves.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::command::{Database, Served, seeded};
use crate::service::request;
use crate::support::engines::redis_url;
use crate::support::redis::PrivateRedis;
use crate::support::wait::eventually_within;

async fn sql(url: &str, sql: String) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
}

/// What fails of reads of contacts that nobody has read yet.
async fn failed_misses(served: &Served, contacts: std::ops::Range<u32>) -> Vec<String> {
    let read = async |contact: u32| {
        let path = format!("/api/v1/companies/{}/contacts/{contact}", contact % 20 + 1);
        let answer = request(served, "GET", &path, "", "").await;
        let served = matches!(answer.status, 200 | 404);
        (!served).then(|| format!("{} {}", answer.status, answer.text))
    };
    futures_util::future::join_all(contacts.map(read)).await.into_iter().flatten().collect()
}

/// The bar is one failed read a connection and change. There is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_column_is_altered_ten_times_under_load_fails_no_read() {
    let database = seeded();
    // Every read is a look at Postgres: no L2, and no contact is asked for twice.
    let a = Served::start_on(&database.url, "", "a", &["--pool-size", "10"]);
    assert_eq!(failed_misses(&a, 0..30).await, [""; 0]);
    for change in 1..=10_u32 {
        let kind = if change % 2 == 0 { "text" } else { "varchar(300)" };
        let altering = sql(&database.url, format!("alter table contacts alter column name type {kind}"));
        let first = change * 1_000;
        let (_, during) = tokio::join!(altering, failed_misses(&a, first..first + 30));
        assert_eq!(during, [""; 0], "during change {change}");
        let after = failed_misses(&a, first + 30..first + 60).await;
        assert_eq!(after, [""; 0], "after change {change}");
    }
    let rename = json!({ "name": "Other" }).to_string();
    let written = request(&a, "PATCH", "/api/v1/companies/1/contacts/20", "", &rename).await;
    assert_eq!(written.status, 200, "{}", written.text);
}

async fn read_only(database: &Database, on: bool) {
    let (_, name) = database.url.rsplit_once('/').unwrap();
    let other = database.url.replace(name, "postgres");
    sql(&other, format!("alter database {name} set default_transaction_read_only = {on}")).await;
    // As a failover does: whoever comes back begins anew.
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = ";
    sql(&other, format!("{end}'{name}'")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_database_was_read_only_the_service_writes_again_within_two_seconds() {
    let database = seeded();
    let a = Served::start_on(&database.url, &redis_url(), "a", &["--pool-size", "10"]);
    let rename = json!({ "name": "Other" }).to_string();
    let write = async || request(&a, "PATCH", "/api/v1/companies/1", "", &rename).await.status;
    assert_eq!(write().await, 200);
    read_only(&database, true).await;
    // All of its connections are made anew meanwhile.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        let writes = futures_util::future::join_all((0..8).map(|_| write())).await;
        assert!(writes.iter().all(|status| *status == 503), "{writes:?}");
        let read = request(&a, "GET", "/api/v1/companies/2", "", "").await;
        assert_eq!(read.status, 200, "{}", read.text);
    }
    let (_, name) = database.url.rsplit_once('/').unwrap();
    let other = database.url.replace(name, "postgres");
    sql(&other, format!("alter database {name} set default_transaction_read_only = off")).await;
    eventually_within(Duration::from_secs(2), "writes are taken", async || write().await == 200).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let writes = futures_util::future::join_all((0..40).map(|_| write())).await;
    assert!(writes.iter().all(|status| *status == 200), "{writes:?}");
}

/// A password that was rotated: instances that run go on, and a new one starts.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_redis_password_is_refused_starts_and_is_isolated() {
    let (database, redis) = (seeded(), PrivateRedis::start().await);
    redis.config("requirepass", "new-one").await;
    for url in [redis.url().replace("redis://", "redis://:old-one@"), redis.url()] {
        let a = Served::start_on(&database.url, &url, "a", &[]);
        assert_eq!(request(&a, "GET", "/readyz", "", "").await.text.trim(), "isolated");
        let read = request(&a, "GET", "/api/v1/companies/1", "", "").await;
        assert_eq!(read.status, 200, "{}", read.text);
        let metrics = request(&a, "GET", "/metrics", "", "").await.text;
        assert!(
            metrics.lines().any(|line| line.starts_with("perto_troubles{")
                && line.contains("redis-unusable")
                && line.ends_with(" 1")),
            "{metrics}"
        );
    }
}
