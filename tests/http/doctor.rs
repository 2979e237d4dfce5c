//! `perto doctor`: every kind of fault that it can find, on real engines.

use perto::postgres::{Watch, watch};
use perto::proxy::{Fault, FaultProxy};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::command::{Database, perto, succeed};
use crate::support::engines::{place_of, redis_at};
use crate::support::liar::{Answer, Liar, Lie};
use crate::support::postgres::PrivatePostgres;
use crate::support::redis::PrivateRedis;
use crate::support::wait::eventually;

mod redis;
mod replication;
mod settings;
mod watched;

/// What the doctor said: of each check, its state, what was found, how to mend it.
struct Said {
    text: String,
    checks: Vec<(String, String, String, String)>,
    well: bool,
}

impl Said {
    /// Whether a check is in this state and says so.
    #[track_caller]
    fn tells(&self, check: &str, state: &str, says: &str, mend: &str) {
        let told = self.checks.iter().any(|(name, is, found, how)| {
            name == check && is == state && found.contains(says) && how.contains(mend)
        });
        assert!(told, "no {state} {check} with {says:?} and {mend:?} in\n{:#?}", self.checks);
        assert_eq!(
            self.well,
            self.checks.iter().all(|(_, is, ..)| is != "wrong"),
            "the exit code says it too"
        );
    }

    /// The commands that mend what is not well.
    fn mends(&self, check: &str) -> Vec<String> {
        let of_it = self.checks.iter().filter(|(name, state, ..)| name == check && state != "ok");
        of_it.flat_map(|(.., mend)| mend.lines().map(str::to_owned)).collect()
    }

    fn worst(&self) -> Vec<&(String, String, String, String)> {
        self.checks.iter().filter(|(_, state, ..)| state != "ok").collect()
    }
}

/// Off the runtime's threads: a proxy in between runs on them.
async fn doctor(postgres: &str, redis: &str, options: &[&str]) -> Said {
    let mut command = perto(postgres, redis);
    command.arg("doctor").args(options).arg("--json");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let json: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {text}"));
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let checks = json["checks"].as_array().unwrap().iter().map(|check| {
        let mend: Vec<String> = check["mend"].as_array().unwrap().iter().map(word).collect();
        (word(&check["check"]), word(&check["state"]), word(&check["found"]), mend.join("\n"))
    });
    Said { checks: checks.collect(), well: output.status.success(), text }
}

/// Runs what a finding says, as it is: SQL, `perto-chat`, or `redis-cli`, of which there may be none here.
async fn run(url: &str, mend: &str) {
    if let Some(arguments) = mend.strip_prefix("perto-chat ") {
        let arguments = words(arguments);
        let url = url.to_owned();
        let running = tokio::task::spawn_blocking(move || succeed(perto(&url, "").args(arguments)));
        drop(running.await.unwrap());
    } else if let Some(arguments) = mend.strip_prefix("redis-cli ") {
        let words = words(arguments);
        let [_, host, _, port, words @ ..] = &words[..] else { panic!("{mend}") };
        let mut connection = redis_at(&format!("redis://{host}:{port}")).await;
        ::redis::cmd(&words[0]).arg(&words[1..]).query_async::<()>(&mut connection).await.unwrap();
    } else {
        assert!(mend.ends_with(';'), "no command: {mend}");
        sql(url, mend).await;
    }
}

/// As a shell reads them.
fn words(line: &str) -> Vec<String> {
    let mut shell = std::process::Command::new("sh");
    let output = shell.args(["-c", &format!("printf '%s\\n' {line}")]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// The service's database.
fn migrated() -> Database {
    let database = Database::new();
    succeed(perto(&database.url, "").arg("migrate"));
    database
}

/// On a server of its own: roles are a whole server's, and would stay on a shared one where a test fails.
async fn migrated_alone() -> (PrivatePostgres, String) {
    let server = PrivatePostgres::start().await;
    let url = server.url("postgres");
    succeed(perto(&url, "").arg("migrate"));
    (server, url)
}

async fn sql(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(&mut connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// A Redis as it should be.
async fn good_redis() -> PrivateRedis {
    let redis = PrivateRedis::start().await;
    redis.config("maxmemory", "100mb").await;
    redis.config("maxmemory-policy", "allkeys-lru").await;
    redis.config("save", "").await;
    redis
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_is_well_it_says_so_and_ends_well() {
    let (database, redis) = (migrated(), good_redis().await);
    let said = doctor(&database.url, &redis.url(), &[]).await;
    assert!(said.well && said.worst().is_empty(), "{:#?}", said.worst());
    assert!(said.checks.len() > 15, "{}", said.checks.len());
    said.tells("service", "ok", "public.companies, which is watched", "");
    said.tells("watched tables", "ok", "public.companies (cache or topic company), by id", "");
    let output = succeed(perto(&database.url, &redis.url()).arg("doctor"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert!(text.trim_end().ends_with("ok, 0 to look at, 0 wrong"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_reached_stops_no_other_check_and_shows_no_password() {
    let (database, redis) = (migrated(), good_redis().await);
    let nobody = "postgres://nobody_at_all:s3cret@127.0.0.1:1/x";
    let said = doctor(nobody, &redis.url(), &["--replica", nobody]).await;
    said.tells("postgres", "wrong", "127.0.0.1:1 can't be reached", "");
    said.tells("replica", "wrong", "--replica: 127.0.0.1:1 can't be reached", "");
    said.tells("redis", "ok", "client", "");
    assert!(!said.text.contains("s3cret"), "{}", said.text);
    let said = doctor(&database.url, "redis://:s3cret@127.0.0.1:1", &[]).await;
    said.tells("redis", "wrong", "127.0.0.1:1 can't be reached", "");
    said.tells("schema", "ok", "perto, version", "");
    assert!(!said.text.contains("s3cret"), "{}", said.text);
    let said = doctor(&database.url, "", &[]).await;
    said.tells("redis", "warn", "no L2 and no hints", "REDIS_URL=");
    assert!(said.well);
}

/// It accepts and says nothing, as a lost route does.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_costs_its_limit_and_no_other_check() {
    let (database, redis) = (migrated(), good_redis().await);
    let proxy = FaultProxy::start(place_of(&database.url)).await.unwrap();
    proxy.set(Fault::BlackHole);
    let hanging = crate::support::engines::moved_to(&database.url, &proxy.address().to_string());
    let said = doctor(&hanging, &redis.url(), &[]).await;
    said.tells("postgres", "wrong", "did not answer within", "");
    said.tells("clock", "ok", "", "");
    let proxy = FaultProxy::start(place_of(&redis.url())).await.unwrap();
    proxy.set(Fault::BlackHole);
    let said = doctor(&database.url, &format!("redis://{}", proxy.address()), &[]).await;
    said.tells("redis", "wrong", "did not answer within", "");
    said.tells("connections", "ok", "", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_other_schema_is_told_of() {
    let database = migrated();
    let said = doctor(&database.url, "", &["--schema", "other"]).await;
    said.tells(
        "schema",
        "wrong",
        "not in this database, in the schema other",
        "perto-chat migrate --log-only --schema other",
    );
    said.tells("connections", "ok", "", "");
    let version = |version: i32| {
        format!(
            "create or replace function perto.version() returns integer language sql immutable as 'select {version}'; \
             create or replace function perto.added() returns integer language sql immutable as 'select {version}'"
        )
    };
    sql(&database.url, &version(1)).await;
    doctor(&database.url, "", &[]).await.tells("schema", "wrong", "of version 1", "perto-chat migrate");
    sql(&database.url, &version(99)).await;
    doctor(&database.url, "", &[]).await.tells("schema", "wrong", "of version 99", "newer Perto");
    let output = perto(&database.url, "").args(["doctor", "--schema", "No Schema"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("No Schema"), "refused by its name");
}

#[tokio::test(flavor = "multi_thread")]
async fn rights_and_connections_that_a_role_lacks_are_told_of() {
    let (_server, url) = migrated_alone().await;
    // It trusts everybody: the password is only one that must not be shown.
    let as_poor = url.replace("postgres@", "poor:s3cret@");
    sql(
        &url,
        "create role poor login connection limit 5; grant select on all tables in schema perto to poor; \
         grant insert on perto.tick to poor",
    )
    .await;
    let said = doctor(&as_poor, "", &[]).await;
    said.tells(
        "rights",
        "wrong",
        "insert, update on perto.boot",
        "grant insert, delete on perto.invalidation to poor;",
    );
    said.tells("rights", "wrong", "delete on perto.tick", "grant delete on perto.tick to poor;");
    said.tells("connections", "warn", "of 5 of this role", "connection limit");
    assert!(!said.text.contains("s3cret"), "{}", said.text);
    sql(&url, "revoke all on all tables in schema perto from poor").await;
    doctor(&as_poor, "", &[]).await.tells(
        "rights",
        "wrong",
        "select, insert, update on perto.boot",
        "grant select, insert, update on perto.boot",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_trims_or_that_is_too_long_is_told_of() {
    let database = migrated();
    doctor(&database.url, "", &[]).await.tells("log", "ok", "no instance has run here yet", "");
    sql(
        &database.url,
        "insert into perto.tick (at) values (now() - interval '2 hours'), (now() - interval '20 minutes')",
    )
    .await;
    doctor(&database.url, "", &[]).await.tells("log", "warn", "looked after it 20 min", "start an instance");
    sql(&database.url, "insert into perto.tick default values; insert into perto.invalidation (cache, keys) select 'company', array[n::text] from generate_series(1, 100001) n").await;
    doctor(&database.url, "", &[]).await.tells("log", "warn", "more than 100000 rows", "group by cache");
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_are_open_for_long_are_told_of_by_process() {
    let database = migrated();
    let mut writer = PgConnection::connect(&database.url).await.unwrap();
    sqlx::raw_sql(
        "set application_name = 'a long one'; begin; insert into companies (name, region) values ('x', 'PT')",
    )
    .execute(&mut writer)
    .await
    .unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut writer).await.unwrap();
    doctor(&database.url, "", &[]).await.tells("transactions", "ok", "none open for 5 min", "");
    let said = doctor(&database.url, "", &["--long", "1ms"]).await;
    said.tells(
        "transactions",
        "warn",
        "(a long one, idle in transaction, has written)",
        &format!("pg_terminate_backend({pid});"),
    );
    assert!(said.well, "it is no fault yet");
}
