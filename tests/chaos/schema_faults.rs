//! What people do to a database that is in use: its tables altered, published and watched anew, its settings changed.

use std::time::{Duration, Instant};

use perto::postgres::{Watch, watch};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::sleep;

use crate::faults::Caused;
use crate::stats::AllStats;
use crate::world::World;

/// How soon writes of every instance work again, once the database takes them.
const WRITES_AGAIN: Duration = Duration::from_secs(3);

/// Statements that are prepared for a type that is no more fail on each connection, once.
pub(crate) async fn column_retyped(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    const TIMES: u32 = 10;
    let mut connection = world.connect().await?;
    for length in 21..21 + TIMES {
        run(&mut connection, &format!("alter table rows alter column note type varchar({length})")).await?;
        sleep(time / TIMES).await;
    }
    Ok(Caused::noting(format!("{TIMES} times")))
}

/// The key of another cache on the same table can't be computed any more. Its triggers run in every write all the same.
pub(crate) async fn key_renamed(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let mut connection = world.connect().await?;
    run(&mut connection, "alter table rows add column if not exists spare bigint").await?;
    watch(&mut connection, &watched("spare", "spare")).await?;
    run(&mut connection, "alter table rows rename column spare to renamed").await?;
    sleep(time).await;
    let told = "select count(*) from invalidation where cache = 'spare' and fault is not null";
    let told: i64 = sqlx::query_scalar(told).fetch_one(&mut connection).await?;
    run(&mut connection, "alter table rows rename column renamed to spare").await?;
    let mut caused = Caused::noting(format!("{told} writes could not say which keys they changed"));
    caused.expect(told > 0, "every key could be computed");
    Ok(caused)
}

/// As change data capture makes one. The log is written and trimmed as before.
pub(crate) async fn published(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let mut connection = world.connect().await?;
    run(&mut connection, "create publication everything for all tables").await?;
    let trimmed = "delete from invalidation where xid < pg_snapshot_xmin(pg_current_snapshot()) \
       and xid::text::bigint % 1000 = 0";
    let deleted = run(&mut connection, trimmed).await;
    sleep(time).await;
    run(&mut connection, "drop publication everything").await?;
    let mut caused = Caused::default();
    caused.expect(deleted.is_ok(), format!("no row of the log can be deleted: {deleted:?}"));
    Ok(caused)
}

/// In one transaction, so that no write goes by unlogged: the auditor would tell of it.
pub(crate) async fn triggers_made_anew(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let mut connection = world.connect().await?;
    let (began, mut times, mut longest) = (Instant::now(), 0, Duration::ZERO);
    while began.elapsed() < time {
        let dropping = Instant::now();
        let drops: Vec<String> = ["insert", "update", "delete", "truncate"]
            .map(|event| format!("drop trigger \"chaos:row:{event}\" on rows"))
            .to_vec();
        let mut tx = connection.begin().await?;
        run(&mut tx, &drops.join("; ")).await?;
        watch(&mut tx, &watched("row", "id")).await?;
        tx.commit().await?;
        longest = longest.max(dropping.elapsed());
        times += 1;
        sleep(Duration::from_millis(500)).await;
    }
    let mut caused = Caused::noting(format!("{times} times, for {longest:.0?} at most"));
    caused.expect(longest < world.pace.bound / 2, "it took as long as the bound");
    Ok(caused)
}

/// As before a failover, or by somebody's mistake: connections that are made meanwhile keep it for their life.
pub(crate) async fn read_only(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let mut connection = world.connect().await?;
    run(&mut connection, "set session characteristics as transaction read write").await?;
    run(&mut connection, "alter database postgres set default_transaction_read_only = on").await?;
    // Else those that are there would never notice.
    let others = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
       where backend_type = 'client backend' and pid <> pg_backend_pid()";
    run(&mut connection, others).await?;
    sleep(time).await;
    let during = world.stats().await?;
    run(&mut connection, "alter database postgres reset default_transaction_read_only").await?;
    let mut caused = Caused::default();
    let after = eventually_written(world, &during).await?;
    caused.expect(after.is_some(), "some instance writes nothing though the database takes writes again");
    caused.note = format!("writes again after {:.1?}", after.unwrap_or_default());
    Ok(caused)
}

/// When every instance has written something.
async fn eventually_written(world: &mut World, before: &AllStats) -> anyhow::Result<Option<Duration>> {
    let began = Instant::now();
    while began.elapsed() < WRITES_AGAIN {
        sleep(Duration::from_millis(50)).await;
        let now = world.stats().await?;
        let wrote = |number: &u32| now[number].hints_published > before[number].hints_published;
        if now.keys().all(wrote) {
            return Ok(Some(began.elapsed()));
        }
    }
    Ok(None)
}

/// What an operator may set for a role: how texts look, how transactions run.
pub(crate) async fn role_settings(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    const SETTINGS: [(&str, &str); 6] = [
        ("default_transaction_isolation", "'repeatable read'"),
        ("datestyle", "'German'"),
        ("extra_float_digits", "0"),
        ("bytea_output", "'escape'"),
        ("statement_timeout", "'20s'"),
        ("search_path", "'pg_catalog'"),
    ];
    let mut connection = world.connect().await?;
    for (name, value) in SETTINGS {
        run(&mut connection, &format!("alter role postgres set {name} = {value}")).await?;
    }
    let others = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
       where backend_type = 'client backend' and pid <> pg_backend_pid()";
    run(&mut connection, others).await?;
    sleep(time).await;
    run(&mut connection, "alter role postgres reset all").await?;
    run(&mut connection, others).await?;
    Ok(Caused::noting(format!("{} settings", SETTINGS.len())))
}

fn watched(cache: &str, key: &str) -> Watch {
    let (schema, table) = ("chaos".to_owned(), "chaos.rows".to_owned());
    Watch { schema, table, cache: cache.to_owned(), key: key.to_owned(), columns: Vec::new() }
}

async fn run(connection: &mut PgConnection, sql: &str) -> anyhow::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}
