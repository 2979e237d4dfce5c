//! `perto doctor`: every kind of fault that it can find, on real engines.

use perto::postgres::{Watch, watch};
use perto::proxy::{Fault, FaultProxy};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::command::{Database, perto, succeed};
use crate::support::engines::place_of;
use crate::support::postgres::PrivatePostgres;
use crate::support::redis::PrivateRedis;
use crate::support::wait::eventually;

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

/// The service's database.
fn migrated() -> Database {
    let database = Database::new();
    succeed(perto(&database.url, "").args(["migrate", "--service"]));
    database
}

/// On a server of its own: roles are a whole server's, and would stay on a shared one where a test fails.
async fn migrated_alone() -> (PrivatePostgres, String) {
    let server = PrivatePostgres::start().await;
    let url = server.url("postgres");
    succeed(perto(&url, "").args(["migrate", "--service"]));
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
    said.tells("watched tables", "ok", "public.companies (cache company), by id", "");
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
    said.tells("redis", "ok", "clients", "");
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
    said.tells("redis", "wrong", "timed out", "");
    said.tells("connections", "ok", "", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_other_schema_is_told_of() {
    let database = migrated();
    let said = doctor(&database.url, "", &["--schema", "other"]).await;
    said.tells("schema", "wrong", "no invalidation log in the schema other", "perto migrate --schema other");
    said.tells("connections", "ok", "", "");
    sql(&database.url, "update perto.meta set version = 1").await;
    doctor(&database.url, "", &[]).await.tells("schema", "wrong", "version 1", "perto migrate");
    sql(&database.url, "update perto.meta set version = 99").await;
    doctor(&database.url, "", &[]).await.tells("schema", "wrong", "version 99", "newer Perto");
    let output = perto(&database.url, "").args(["doctor", "--schema", "No Schema"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("No Schema"), "refused by its name");
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_that_are_missing_disabled_or_not_always_on_are_told_of_by_table_and_event() {
    let database = migrated();
    let trigger = |event: &str| format!("\"perto:company:{event}\"");
    sql(
        &database.url,
        &format!(
            "drop trigger {} on companies; drop trigger {} on companies",
            trigger("insert"),
            trigger("truncate")
        ),
    )
    .await;
    sql(&database.url, &format!("alter table companies disable trigger {}", trigger("update"))).await;
    sql(&database.url, &format!("alter table companies enable trigger {}", trigger("delete"))).await;
    let said = doctor(&database.url, "", &[]).await;
    let mend = "perto watch public.companies --cache company --key id";
    said.tells("triggers", "wrong", "public.companies has no trigger for insert, truncate", mend);
    said.tells("triggers", "wrong", "public.companies has its trigger disabled for update", mend);
    said.tells("triggers", "wrong", "not `enable always` for delete", mend);
    // As it says, so it is mended.
    succeed(perto(&database.url, "").args(mend.split(' ').skip(1)));
    let said = doctor(&database.url, "", &[]).await;
    assert!(said.well, "{:#?}", said.worst());
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_came_later_and_tables_that_went_are_told_of() {
    let database = migrated();
    sql(&database.url, "create table orders (id bigint, shop text) partition by range (id); create table low partition of orders for values from (0) to (9)").await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let orders = Watch {
        schema: "perto".into(),
        table: "orders".into(),
        cache: "order".into(),
        key: "shop || ':' || id".into(),
    };
    watch(&mut connection, &orders).await.unwrap();
    doctor(&database.url, "", &[]).await.tells("watched tables", "ok", "with a partition", "");
    sql(&database.url, "create table high partition of orders for values from (9) to (99)").await;
    let mend = r"perto watch public.orders --cache order --key 'shop || '\'':'\'' || id'";
    doctor(&database.url, "", &[]).await.tells(
        "partitions",
        "wrong",
        "public.high came after public.orders",
        mend,
    );
    sql(&database.url, "drop table orders").await;
    doctor(&database.url, "", &[]).await.tells(
        "watched tables",
        "warn",
        "public.orders (cache order) does not exist any more",
        "perto watch public.orders --cache order --remove",
    );
    sql(&database.url, "create table orders (id bigint, shop text)").await;
    doctor(&database.url, "", &[]).await.tells(
        "watched tables",
        "wrong",
        "is not the table that was watched",
        mend,
    );
    sql(&database.url, "drop table orders").await;
    succeed(perto(&database.url, "").args(["watch", "public.orders", "--cache", "order", "--remove"]));
    assert!(doctor(&database.url, "", &[]).await.well);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_the_service_reads_and_nobody_watches_is_told_of() {
    let database = migrated();
    for (table, cache) in [
        ("chats", "message"),
        ("messages", "message"),
        ("companies", "company"),
        ("users", "user"),
        ("contacts", "contact"),
        ("contacts", "contact_by_phone"),
        ("tool_results", "tool_result"),
        ("api_keys", "api_key"),
    ] {
        succeed(perto(&database.url, "").args(["watch", table, "--cache", cache, "--remove"]));
    }
    let said = doctor(&database.url, "", &[]).await;
    said.tells(
        "service",
        "wrong",
        "public.companies, which nobody watches",
        "perto watch public.companies --cache company --key id",
    );
    said.tells("watched tables", "warn", "none", "perto watch TABLE");
    sql(&database.url, "delete from perto.watched").await;
    succeed(perto(&database.url, "").args(["watch", "companies", "--cache", "company"]));
    sql(&database.url, "delete from perto.watched").await;
    doctor(&database.url, "", &[]).await.tells(
        "watched tables",
        "warn",
        "before there was a record",
        "perto watch public.companies",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn trigger_functions_that_were_changed_are_told_of() {
    let (_server, url) = migrated_alone().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let function: String =
        sqlx::query_scalar("select oid::regprocedure::text from pg_proc where proname like 'company:%'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    sql(
        &url,
        &format!(
            "alter function {function} security invoker; grant execute on function {function} to public"
        ),
    )
    .await;
    let said = doctor(&url, "", &[]).await;
    said.tells("functions", "wrong", "not `security definer`", "perto watch");
    said.tells(
        "functions",
        "wrong",
        "may be attached by anybody",
        &format!("revoke all on function {function} from public"),
    );
    let body = format!(
        "create or replace function {function} returns trigger language plpgsql as 'begin return null; end'"
    );
    sql(&url, &body).await;
    doctor(&url, "", &[]).await.tells("functions", "wrong", "is not the one", "perto watch");
    sql(
        &url,
        &format!(
            "create role poor; grant create on schema perto to poor; alter function {function} owner to poor"
        ),
    )
    .await;
    let said = doctor(&url, "", &[]).await;
    said.tells("functions", "wrong", "every write to the table fails", "grant insert on perto.invalidation");
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
    said.tells("rights", "wrong", "delete on perto.tick", "grant update on perto.meta to poor;");
    said.tells("connections", "warn", "of 5 of this role", "connection limit");
    assert!(!said.text.contains("s3cret"), "{}", said.text);
    sql(&url, "revoke all on all tables in schema perto from poor").await;
    doctor(&as_poor, "", &[]).await.tells(
        "rights",
        "wrong",
        "select, update on perto.meta",
        "grant select, update on perto.meta",
    );
}

/// What is recorded there is what the doctor tells an admin to run.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_else_may_write_what_is_watched_is_told_of() {
    let (_server, url) = migrated_alone().await;
    doctor(&url, "", &[]).await.tells("record", "ok", "nobody but its owner", "");
    sql(
        &url,
        "create role poor; grant all on all tables in schema perto to poor; grant insert on perto.watched to public",
    )
    .await;
    let mend = "revoke insert, update, delete, truncate on perto.watched from poor, public;";
    doctor(&url, "", &[]).await.tells("record", "wrong", "by poor, public", mend);
    sql(&url, mend).await;
    let said = doctor(&url, "", &[]).await;
    said.tells("record", "ok", "nobody but its owner", "");
    assert!(said.well, "{:#?}", said.worst());
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
    doctor(&database.url, "", &[]).await.tells("log", "warn", "last tick 20 min", "start an instance");
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

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_into_a_watched_table_is_told_of() {
    let (from, to) = (migrated(), migrated());
    sql(&from.url, "create publication p for table companies").await;
    let (_, name) = from.url.rsplit_once('/').unwrap();
    let place = place_of(&from.url);
    let (host, port) = place.split_once(':').unwrap_or((&place, "5432"));
    // Without a slot: it never runs, but it is there.
    let subscribe = format!(
        "create subscription s connection 'host={host} port={port} user=postgres dbname={name} password=s3cret' publication p \
         with (create_slot = false, enabled = false, copy_data = false, slot_name = none)"
    );
    sql(&to.url, &subscribe).await;
    let said = doctor(&to.url, "", &[]).await;
    sql(&to.url, "drop subscription s").await;
    said.tells(
        "subscriptions",
        "wrong",
        "the subscription s writes into public.companies",
        "alter subscription s refresh publication",
    );
    assert!(!said.text.contains("s3cret"), "{}", said.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_no_primary_and_a_replica_must_be_one_of_this_cluster() {
    let primary = PrivatePostgres::start().await;
    let url = primary.url("postgres");
    succeed(perto(&url, "").args(["migrate", "--service"]));
    let (standby, stranger) = (primary.standby().await, Database::new());
    let at = standby.url("postgres");
    eventually("the standby has what the primary has", async || {
        doctor(&url, "", &["--replica", &at])
            .await
            .checks
            .iter()
            .any(|(check, state, ..)| check == "replica" && state == "ok")
    })
    .await;
    let said = doctor(&at, "", &[]).await;
    said.tells(
        "primary",
        "wrong",
        "a standby",
        &format!("point DATABASE_URL at the primary, 127.0.0.1:{}", primary.port),
    );
    said.tells("schema", "ok", "", "");
    doctor(&url, "", &["--replica", &url]).await.tells("replica", "wrong", "not in recovery", "");
    succeed(perto(&stranger.url, "").args(["migrate", "--service"]));
    doctor(&stranger.url, "", &["--replica", &at]).await.tells("replica", "wrong", "of another cluster", "");
    sql(&at, "select pg_wal_replay_pause()").await;
    sql(&url, "update companies set name = name; create table filler as select generate_series(1, 10000)")
        .await;
    eventually("the standby lags", async || {
        let said = doctor(&url, "", &["--replica", &at]).await;
        said.checks.iter().any(|(check, state, found, mend)| {
            check == "replica"
                && state == "warn"
                && found.contains("to replay")
                && mend.contains("pg_wal_replay_resume")
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_redis_is_told_of_with_the_command_that_mends_it() {
    let (database, redis) = (migrated(), good_redis().await);
    let mut connection = redis.connect().await;
    let url = redis.url();
    let look = async || doctor(&database.url, &url, &[]).await;
    redis.config("maxmemory-policy", "noeviction").await;
    look().await.tells("memory", "warn", "when it is full", "maxmemory-policy allkeys-lru");
    redis.config("maxmemory", "1").await;
    look().await.tells("memory", "wrong", "nothing more is put there", "maxmemory-policy allkeys-lru");
    redis.config("maxmemory", "0").await;
    look().await.tells("memory", "warn", "no maxmemory", "config set maxmemory 1gb");
    redis.config("client-output-buffer-limit", "pubsub 0 0 0").await;
    look().await.tells("buffers", "warn", "may take all memory", "client-output-buffer-limit");
    redis.config("client-output-buffer-limit", "pubsub 1024 1024 60").await;
    look().await.tells("buffers", "warn", "when 1 KiB of hints wait", "client-output-buffer-limit");
    redis.config("save", "3600 1").await;
    redis.config("appendonly", "yes").await;
    let said = look().await;
    said.tells("persistence", "warn", "appendonly and save is on", "config set appendonly no");
    said.tells("persistence", "warn", "safe and useless", "config set save ''");
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).query_async::<()>(&mut connection).await.unwrap();
    look().await.tells("role", "wrong", "a replica of 127.0.0.1:1", "point REDIS_URL at 127.0.0.1:1");
}

/// As managed services do.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_forbids_config_is_not_wrong_and_one_that_forbids_scripts_is() {
    let (database, redis) = (migrated(), good_redis().await);
    let mut connection = redis.connect().await;
    for (name, without) in [("careful", "-config"), ("useless", "-eval")] {
        let mut user = redis::cmd("ACL");
        user.arg("SETUSER").arg(name).arg(&["on", ">s3cret", "~*", "&*", "+@all", without]);
        user.query_async::<()>(&mut connection).await.unwrap();
    }
    let as_user = |name: &str| redis.url().replace("redis://", &format!("redis://{name}:s3cret@"));
    let said = doctor(&database.url, &as_user("careful"), &[]).await;
    said.tells("buffers", "warn", "CONFIG GET client-output-buffer-limit can't be read", "");
    said.tells("persistence", "warn", "can't be read", "");
    said.tells("memory", "ok", "allkeys-lru", "");
    assert!(said.well && !said.text.contains("s3cret"), "{}", said.text);
    let said = doctor(&database.url, &as_user("useless"), &[]).await;
    said.tells("commands", "wrong", "EVAL is refused", "acl setuser");
    let said = doctor(&database.url, &redis.url().replace("redis://", "redis://nobody:s3cret@"), &[]).await;
    said.tells("redis", "wrong", "refuses the user or the password", "");
    assert!(!said.text.contains("s3cret"), "{}", said.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_far_away_is_told_of() {
    let (database, redis) = (migrated(), good_redis().await);
    let proxy = FaultProxy::start(place_of(&redis.url())).await.unwrap();
    let far = format!("redis://{}", proxy.address());
    proxy.set(Fault::Delay(std::time::Duration::from_millis(15)));
    doctor(&database.url, &far, &[]).await.tells("latency", "warn", "that a read waits for L2", "nearer");
    proxy.set(Fault::Delay(std::time::Duration::from_millis(40)));
    doctor(&database.url, &far, &[]).await.tells("latency", "wrong", "L2 is not used", "nearer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_cluster_is_told_of() {
    let (database, redis) = (migrated(), PrivateRedis::start_cluster_node().await);
    doctor(&database.url, &redis.url(), &[]).await.tells(
        "mode",
        "wrong",
        "a node of a cluster",
        "cluster-enabled no",
    );
}
