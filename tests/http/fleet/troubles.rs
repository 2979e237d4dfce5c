//! Troubles, each forced for real: an alert that fires and ends, and one line in the log at each end.

use std::path::PathBuf;
use std::process::Command;

use super::*;
use crate::support::servers::Folder;
use crate::support::wait::eventually_within;

/// What is looked at once a minute, or judged by a minute.
const MINUTES: Duration = Duration::from_secs(150);

/// An instance whose log lines are kept.
struct Logged {
    served: Served,
    file: PathBuf,
    _folder: Folder,
}

impl Logged {
    fn start(database: &str, redis: &str) -> Self {
        Self::start_by(perto(database, redis))
    }

    fn start_by(command: Command) -> Self {
        let folder = Folder::new("log");
        let file = folder.0.join("log");
        let log = std::fs::File::create(&file).unwrap();
        Self { served: Served::start_saying(command, "a", &[], log.into()), file, _folder: folder }
    }

    /// The lines that tell of it.
    fn lines(&self, name: &str) -> Vec<String> {
        let said = std::fs::read_to_string(&self.file).unwrap();
        let of_it = format!("=\"{name}\"");
        said.lines().filter(|line| line.contains(&of_it)).map(str::to_owned).collect()
    }

    /// Waits for the alert, and for its line.
    async fn fires(&self, name: &str, severity: &str, says: &str) -> Value {
        eventually_within(MINUTES, &format!("{name} fires"), async || {
            alerts(&self.served, name)
                .await
                .iter()
                .any(|alert| alert["detail"].as_str().unwrap().contains(says))
        })
        .await;
        let alert = alerts(&self.served, name).await.remove(0);
        assert_eq!((&alert["instance"], &alert["severity"]), (&json!("a"), &json!(severity)), "{alert}");
        eventually_within(MINUTES, &format!("{name} is told"), async || !self.lines(name).is_empty()).await;
        assert_eq!(self.lines(name).len(), 1, "one line: {:#?}", self.lines(name));
        alert
    }

    /// Waits for its end, and the line of that. Meanwhile `work` is done, as by whoever reads and writes.
    async fn ends(&self, name: &str, mut work: impl AsyncFnMut()) {
        eventually_within(MINUTES, &format!("{name} ends"), async || {
            work().await;
            alerts(&self.served, name).await.is_empty()
        })
        .await;
        eventually_within(MINUTES, &format!("the end of {name} is told"), async || {
            self.lines(name).len() > 1
        })
        .await;
        let lines = self.lines(name);
        assert!(lines.len() == 2 && lines[1].contains("is over"), "one more line: {lines:#?}");
    }
}

/// A server with a role that may use the tables, and owns none.
async fn as_user() -> (PrivatePostgres, String, String) {
    let server = PrivatePostgres::start().await;
    let url = server.url("postgres");
    succeed(perto(&url, "").arg("migrate"));
    sql(
        &url,
        "create role app login; grant all on all tables in schema public, perto to app; \
         grant all on all sequences in schema public, perto to app",
    )
    .await;
    let as_app = url.replace("postgres@", "app@");
    (server, url, as_app)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_trimmed_raises_an_alert_until_it_can() {
    let database = seeded();
    // Not by a right: without one an instance doesn't start.
    sql(
        &database.url,
        "create function refuse() returns trigger language plpgsql as $$ begin raise 'nobody deletes here'; end $$; \
         create trigger refuse before delete on perto.invalidation execute function refuse()",
    )
    .await;
    let a = Logged::start(&database.url, &redis_url());
    a.fires("log-not-trimmed", "warning", "nobody deletes here").await;
    sql(&database.url, "drop trigger refuse on perto.invalidation").await;
    a.ends("log-not-trimmed", async || {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trigger_that_is_lost_raises_an_alert_until_the_table_is_watched_again() {
    let database = seeded();
    let a = Logged::start(&database.url, &redis_url());
    sql(&database.url, "drop trigger \"perto:company:update\" on companies").await;
    let alert = a.fires("unwatched", "critical", "companies").await;
    assert!(alert["detail"].as_str().unwrap().contains("perto watch"), "{alert}");
    succeed(perto(&database.url, "").arg("migrate"));
    a.ends("unwatched", async || {}).await;
}

/// It ends ten minutes after the last one: on a clock that a test can move.
#[tokio::test(flavor = "multi_thread")]
async fn an_audit_that_finds_a_violation_raises_an_alert() {
    let database = seeded();
    let a = Logged::start(&database.url, &redis_url());
    read_companies(&a.served, 1..=1).await;
    sql(
        &database.url,
        "alter table companies disable trigger all; update companies set name = 'unseen' where id = 1; \
         alter table companies enable trigger all",
    )
    .await;
    let reading = async || read_companies(&a.served, 1..=1).await;
    eventually("an audit finds it", async || {
        reading().await;
        !alerts(&a.served, "audit-violation").await.is_empty()
    })
    .await;
    a.fires("audit-violation", "critical", "company").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_read_only_raises_an_alert_until_it_can_be_written() {
    let database = seeded();
    let name = database.url.rsplit('/').next().unwrap().to_owned();
    let a = Logged::start(&database.url, &redis_url());
    let leave = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}' and pid <> pg_backend_pid()"
    );
    sql(&database.url, &format!("alter database {name} set default_transaction_read_only = on")).await;
    sql(&database.url, &leave).await;
    a.fires("writes-failing", "critical", "read-only").await;
    let renamed = json!({ "name": "other" }).to_string();
    assert_eq!(request(&a.served, "PATCH", "/api/v1/companies/1", "", &renamed).await.status, 503);
    sql(
        &database.url,
        &format!("begin read write; alter database {name} reset default_transaction_read_only; commit"),
    )
    .await;
    a.ends("writes-failing", async || {
        request(&a.served, "PATCH", "/api/v1/companies/1", "", &renamed).await;
    })
    .await;
    assert_eq!(request(&a.served, "PATCH", "/api/v1/companies/1", "", &renamed).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_postgres_lets_in_no_more_raises_an_alert_until_it_does() {
    let (_server, url, as_app) = as_user().await;
    let a = Logged::start(&as_app, &redis_url());
    let leave = "select pg_terminate_backend(pid) from pg_stat_activity where usename = 'app'";
    for (bar, lift, says) in [
        ("alter role app nologin", "alter role app login", "not permitted to log in"),
        ("alter role app connection limit 0", "alter role app connection limit -1", "for "),
    ] {
        sql(&url, bar).await;
        sql(&url, leave).await;
        eventually("it is told of", async || {
            let told = alerts(&a.served, "postgres-pool-unusable").await;
            told.iter().any(|alert| alert["detail"].as_str().unwrap().contains(says))
        })
        .await;
        sql(&url, lift).await;
        eventually("it is mended", async || alerts(&a.served, "postgres-pool-unusable").await.is_empty())
            .await;
    }
    let lines = a.lines("postgres-pool-unusable");
    assert!((2..=4).contains(&lines.len()), "at most once a minute: {lines:#?}");
}

/// A user of Redis, made anew with each call.
async fn user(redis: &PrivateRedis, rules: &[&str]) -> String {
    let mut command = redis::cmd("ACL");
    command.arg("SETUSER").arg("app").arg("reset").arg(&["on", "~*", "&*", "+@all"]).arg(rules);
    command.query_async::<()>(&mut redis.connect().await).await.unwrap();
    redis.url().replace("redis://", "redis://app:s3cret@")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_keeps_no_values_raises_an_alert_until_it_does() {
    let (database, redis) = (seeded(), PrivateRedis::start().await);
    let a = Logged::start(&database.url, &user(&redis, &[">s3cret", "-set"]).await);
    let mut next = 1_000;
    let mut reading = async || {
        next += 1;
        request(&a.served, "GET", &format!("/api/v1/companies/{next}"), "", "").await;
    };
    eventually("it is told of", async || {
        reading().await;
        !alerts(&a.served, "fills-refused").await.is_empty()
    })
    .await;
    a.fires("fills-refused", "warning", "").await;
    user(&redis, &[">s3cret"]).await;
    a.ends("fills-refused", reading).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_of_redis_that_was_changed_raises_an_alert_and_a_new_instance_starts_all_the_same() {
    let (database, redis) = (seeded(), PrivateRedis::start().await);
    let url = user(&redis, &[">s3cret"]).await;
    let a = Logged::start(&database.url, &url);
    eventually("it is coherent", async || instances(&a.served).await[0]["state"] == "coherent").await;
    user(&redis, &[">another"]).await;
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL")
        .arg("USER")
        .arg("app")
        .query_async::<redis::Value>(&mut redis.connect().await)
        .await
        .unwrap();
    // The subscription notices by itself; of L2 it is found out by who reads.
    a.fires("hints-not-received", "warning", "").await;
    let mut next = 1_000;
    eventually("it is told of", async || {
        next += 1;
        request(&a.served, "GET", &format!("/api/v1/companies/{next}"), "", "").await;
        !alerts(&a.served, "redis-unusable").await.is_empty()
    })
    .await;
    let alert = a.fires("redis-unusable", "warning", "").await;
    let detail = alert["detail"].as_str().unwrap().to_lowercase();
    assert!(detail.contains("password") || detail.contains("wrongpass"), "{alert}");
    assert!(!detail.contains("s3cret"), "{alert}");
    let b = Served::start_on(&database.url, &url, "b", &[]);
    eventually("the new one is isolated", async || {
        instances(&b).await.iter().any(|one| one["instance"] == "b" && one["state"] == "isolated")
    })
    .await;
    drop(b);
    user(&redis, &[">s3cret"]).await;
    a.ends("redis-unusable", async || {}).await;
    a.ends("hints-not-received", async || {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn loads_that_fail_raise_an_alert_until_they_succeed() {
    let database = seeded();
    let a = Logged::start(&database.url, &redis_url());
    sql(&database.url, "alter table contacts rename column name to called").await;
    let mut next = 0;
    let mut reading = async || {
        next += 1;
        request(&a.served, "GET", &format!("/api/v1/companies/1/contacts/{next}"), "", "").await;
    };
    eventually("it is told of", async || {
        reading().await;
        !alerts(&a.served, "loads-failing").await.is_empty()
    })
    .await;
    a.fires("loads-failing", "critical", "cache contact").await;
    sql(&database.url, "alter table contacts rename column called to name").await;
    a.ends("loads-failing", reading).await;
}

async fn rename_company(served: &Served) -> u16 {
    let renamed = json!({ "name": "other" }).to_string();
    request(served, "PATCH", "/api/v1/companies/1", "", &renamed).await.status
}

/// It ends two minutes after the last such write.
#[tokio::test(flavor = "multi_thread")]
async fn writes_whose_keys_cannot_be_told_raise_an_alert_until_they_can() {
    let database = seeded();
    let a = Logged::start(&database.url, &redis_url());
    sql(&database.url, "alter table companies add code bigint; update companies set code = id").await;
    let watch = ["watch", "companies", "--cache", "company", "--key", "code", "--replace"];
    succeed(perto(&database.url, "").args(watch));
    sql(&database.url, "alter table companies rename code to number").await;
    assert_eq!(rename_company(&a.served).await, 200, "no write fails because of it");
    let alert = a.fires("key-fails", "warning", "column \"code\" does not exist").await;
    assert!(alert["detail"].as_str().unwrap().contains("cache company, table public.companies"), "{alert}");
    succeed(perto(&database.url, "").arg("migrate"));
    a.ends("key-fails", async || assert_eq!(rename_company(&a.served).await, 200)).await;
}

/// It ends ten minutes after the last one: on a clock that a test can move.
#[tokio::test(flavor = "multi_thread")]
async fn a_loader_that_spells_keys_otherwise_than_it_was_asked_raises_an_alert() {
    let database = seeded();
    let a = Logged::start(&database.url, &redis_url());
    let path = format!("/api/v1/chats/{}/tool-results/weather", crate::resources::CHAT);
    assert_eq!(request(&a.served, "PUT", &path, "", "[1]").await.status, 200);
    // It comes padded from now on.
    let padded =
        "alter table tool_results drop constraint tool_results_tool_check, alter column tool type char(40)";
    sql(&database.url, padded).await;
    eventually("it is told of", async || {
        request(&a.served, "GET", &path, "", "").await;
        !alerts(&a.served, "keys-differ").await.is_empty()
    })
    .await;
    a.fires("keys-differ", "critical", "cache tool_result").await;
    sql(&database.url, "alter table tool_results alter column tool type text").await;
    assert_eq!(request(&a.served, "GET", &path, "", "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_read_raises_an_alert_until_it_can() {
    let (_server, url, as_app) = as_user().await;
    let a = Logged::start(&as_app, &redis_url());
    sql(&url, "revoke select on perto.invalidation from app").await;
    a.fires("log-unreadable", "critical", "permission denied").await;
    sql(&url, "grant select on perto.invalidation to app").await;
    a.ends("log-unreadable", async || {}).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_takes_no_hints_raises_an_alert_until_it_does() {
    let (database, redis) = (seeded(), PrivateRedis::start().await);
    let a = Logged::start(&database.url, &user(&redis, &[">s3cret", "-publish"]).await);
    let writing = async || assert_eq!(rename_company(&a.served).await, 200);
    eventually("it is told of", async || {
        writing().await;
        !alerts(&a.served, "hints-refused").await.is_empty()
    })
    .await;
    a.fires("hints-refused", "warning", "").await;
    user(&redis, &[">s3cret"]).await;
    a.ends("hints-refused", writing).await;
}

/// It ends a minute after the last one: who asks is traced, too.
#[tokio::test(flavor = "multi_thread")]
async fn spans_that_no_collector_takes_raise_an_alert() {
    let database = seeded();
    let mut command = perto(&database.url, &redis_url());
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9").env("OTEL_BSP_SCHEDULE_DELAY", "100");
    let a = Logged::start_by(command);
    read_companies(&a.served, 1..=1).await;
    let alert = a.fires("traces-lost", "warning", "could not be sent to the collector").await;
    assert!(alert["value"].as_f64() > Some(0.0), "{alert}");
}
