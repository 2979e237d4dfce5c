//! Logical replication beside the log: it replicates none of it, and is in nobody's way.

use perto::postgres::{self, Watch};
use perto::{Event, Recovery};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::engines::redis_url;
use crate::support::postgres::PrivatePostgres;
use crate::support::wait::eventually;
use crate::world::{World, coherent};

/// Whatever publishes all that there is asks a replica identity of what it publishes. This needs no `wal_level`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_publication_of_all_tables_writes_traces_and_trims_go_on() {
    let postgres = PrivatePostgres::start().await;
    let world = World::on(&postgres.url("postgres"), &redis_url()).await;
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    let mut publications = vec!["for all tables".to_owned()];
    if version >= 150_000 {
        publications.push(format!("for tables in schema {}", world.name));
    }
    let a = world.start().await;
    coherent([&a]).await;
    let log = postgres::log(&world.database, &world.name).unwrap();
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for (round, what) in (0..).zip(publications) {
        world.sql(&format!("create publication everything {what}")).await;
        world.put(1, 10 * round).await;
        a.polled().await;
        assert_eq!(a.fresh(1).await, Some(10 * round));
        // Traced, as `Perto::write` does it: the row says which trace it is part of.
        let mut tx = world.pool.begin().await.unwrap();
        let write = format!("update items set v = {}", 10 * round + 1);
        sqlx::raw_sql(AssertSqlSafe(write)).execute(&mut *tx).await.unwrap();
        let told: Vec<(String, Option<String>)> = sqlx::query_as("select cache, key from pending($1)")
            .bind(trace)
            .fetch_all(&mut *tx)
            .await
            .unwrap();
        assert_eq!(told, [("item".to_owned(), Some("1".to_owned()))]);
        tx.commit().await.unwrap();
        a.polled().await;
        assert_eq!(a.fresh(1).await, Some(10 * round + 1));
        assert_eq!(world.count(&format!("invalidation where traceparent = '{trace}'")).await, 1);
        world.sql("delete from tick").await;
        log.trim(std::time::Duration::ZERO).await.unwrap();
        assert_eq!(world.count("invalidation").await, 0);
        // And what is done to a log.
        let mut connection = PgConnection::connect(&world.database).await.unwrap();
        postgres::migrate(&mut connection, &world.name).await.unwrap();
        postgres::watch(&mut connection, &world.watch("items", "other")).await.unwrap();
        postgres::unwatch(&mut connection, &world.watch("items", "other")).await.unwrap();
        world.forget_the_epoch().await;
        a.tells(Event::Recovered { why: Recovery::NewEpoch }).await;
        coherent([&a]).await;
        world.sql("drop publication everything").await;
    }
}

/// A subscriber that has caches of its own: what is published of a log it gets into its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_with_a_log_of_its_own_keeps_applying_and_is_coherent_for_its_own_writes() {
    let logical = ["wal_level=logical"];
    let (publisher, subscriber) =
        tokio::join!(PrivatePostgres::start_with(&logical), PrivatePostgres::start_with(&logical));
    let world = World::on(&publisher.url("postgres"), &redis_url()).await;
    let (url, schema) = (subscriber.url("postgres"), &world.name);
    // A log of the same name there, and a table that only the subscriber writes.
    let mut there = PgConnection::connect(&url).await.unwrap();
    postgres::migrate(&mut there, schema).await.unwrap();
    let tables = format!(
        "create table {schema}.items (id bigint primary key, v bigint not null); create table {schema}.own (like {schema}.items including all)"
    );
    sqlx::raw_sql(AssertSqlSafe(tables)).execute(&mut there).await.unwrap();
    for table in ["items", "own"] {
        let watch = Watch {
            cache: if table == "own" { "item".to_owned() } else { "theirs".to_owned() },
            ..world.watch(table, "item")
        };
        postgres::watch(&mut there, &watch).await.unwrap();
    }
    world.sql("insert into items values (1, 1); create publication everything for all tables").await;
    let subscribe = format!(
        "create subscription everything connection 'host=127.0.0.1 port={} user=postgres dbname=postgres' publication everything",
        publisher.port
    );
    sqlx::raw_sql(AssertSqlSafe(subscribe)).execute(&mut there).await.unwrap();

    let pool = crate::world::pool(&url, schema);
    let loading = pool.clone();
    let b = world.build_loading(
        |perto| perto.postgres(&url),
        |cache| cache.tables([format!("{schema}.own")]),
        move |load| {
            let pool = loading.clone();
            async move {
                let rows = postgres::query_as::<(i64, i64)>("select id, v from own where id = any($1)")
                    .bind(load.keys);
                rows.fetch(&pool).await.map(|rows| rows.by_key(|row| row))
            }
        },
    );
    b.perto.start().await.unwrap();
    let a = world.start().await;
    coherent([&a, &b]).await;
    let recoveries = b.perto.stats().recoveries;
    let log = postgres::log(&world.database, schema).unwrap();
    for v in 2..6_i64 {
        // The publisher writes, watches, trims and ticks.
        world.put(1, v).await;
        let mut connection = PgConnection::connect(&world.database).await.unwrap();
        postgres::watch(&mut connection, &world.watch("items", "other")).await.unwrap();
        log.trim(std::time::Duration::ZERO).await.unwrap();
        eventually("it is applied there", async || {
            let applied: Option<i64> =
                sqlx::query_scalar("select v from items where id = 1").fetch_optional(&pool).await.unwrap();
            applied == Some(v)
        })
        .await;
        let write = format!("insert into own values (1, {v}) on conflict (id) do update set v = {v}");
        sqlx::raw_sql(AssertSqlSafe(write)).execute(&pool).await.unwrap();
        b.polled().await;
        assert_eq!(b.fresh(1).await, Some(v));
        postgres::unwatch(&mut connection, &world.watch("items", "other")).await.unwrap();
    }
    assert_eq!(b.perto.stats().recoveries, recoveries, "no horizon of another log is believed");
    let (errors,): (bool,) =
        sqlx::query_as("select pid is not null from pg_stat_subscription where subname = 'everything'")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert!(errors, "its worker runs");
    // What is recorded there is told from what came by replication, and may be watched again.
    let own: Vec<_> = postgres::watched(&mut there, schema).await.unwrap();
    let mine = own.iter().find(|watched| watched.watch.table.ends_with(".own")).unwrap();
    assert_eq!(mine.faults, []);
    assert_eq!(postgres::watch_sql(&mut there, &mine.watch, false).await.unwrap(), None);
    sqlx::raw_sql("alter subscription everything disable; alter subscription everything set (slot_name = none); drop subscription everything").execute(&mut there).await.unwrap();
}

/// An instance that is tried there before the move would keep, in both tiers, what the subscription goes on to write.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_instance_starts_on_a_table_that_a_subscription_writes_into_unless_that_is_allowed() {
    let postgres = PrivatePostgres::start().await;
    let world = World::on(&postgres.url("postgres"), &redis_url()).await;
    // Without a slot: it never runs, but it is there.
    world
        .sql(
            "create publication p for table items; create subscription s connection 'dbname=none' publication p \
             with (connect = false, slot_name = none, enabled = false)",
        )
        .await;
    let table = format!("{}.items", world.name);
    let subscribe = format!(
        "insert into pg_subscription_rel (srsubid, srrelid, srsubstate) \
         select oid, '{table}'::regclass, 'r' from pg_subscription where subname = 's'"
    );
    world.sql(&format!("set allow_system_table_mods = on; {subscribe}")).await;
    let a = world.build(|perto| perto, |cache| cache);
    let refused = a.perto.start().await.unwrap_err().to_string();
    assert!(
        refused.contains(&format!("what the subscription s writes into {table} is not seen")),
        "{refused}"
    );
    world.sql("drop subscription s").await;
    a.perto.start().await.unwrap();
    coherent([&a]).await;
}
