//! Writes by whomever, in any form: SQL by hand, in bulk, truncates, long transactions, other roles, other tables.

use perto::postgres::{self, Watch};
use perto::{LogError, PertoBuilder, Tier, TroubleKind};
use sqlx::{Connection, PgConnection};

use crate::support::wait::{ends, eventually};
use crate::world::{Instance, World, coherent};

/// Reads all of 1..=n, so that L1 has them.
async fn warm(instance: &Instance, ids: std::ops::RangeInclusive<i64>) {
    for id in ids {
        instance.fresh(id).await;
    }
}

/// Nobody tells anybody: the triggers do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sql_by_hand_is_seen_by_every_instance() {
    let world = World::new().await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    let statements = [
        ("insert into items values (1, 1)", Some(1)),
        ("update items set v = 2", Some(2)),
        ("insert into items values (1, 9) on conflict (id) do update set v = 3", Some(3)),
        ("with gone as (delete from items where id = 1 returning id) select * from gone", None),
        ("insert into items values (1, 4)", Some(4)),
        ("update items set id = 2 where id = 1", None),
        ("update items set id = 1 where id = 2", Some(4)),
        (
            "merge into items i using (values (1, 5)) n(id, v) on i.id = n.id when matched then update set v = n.v",
            Some(5),
        ),
        (
            "begin; update items set v = 6; savepoint s; update items set v = 7; rollback to s; commit",
            Some(6),
        ),
        ("begin; update items set v = 8; rollback", Some(6)),
        (
            "set session_replication_role = replica; update items set v = 9; reset session_replication_role",
            Some(9),
        ),
    ];
    for (sql, expected) in statements {
        warm(&a, 1..=2).await;
        warm(&b, 1..=2).await;
        world.sql(sql).await;
        a.polled().await;
        b.polled().await;
        assert_eq!((a.fresh(1).await, b.fresh(1).await), (expected, expected), "{sql}");
    }
}

/// 500 keys of a statement are named one by one; 501 are the whole cache.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_write_of_more_than_500_keys_clears_the_cache_and_one_of_500_does_not() {
    let world = World::new().await;
    let a = world.start().await;
    world.sql("insert into items select n, 1 from generate_series(1, 600) n").await;
    a.polled().await;
    warm(&a, 590..=600).await;
    warm(&a, 1..=10).await;

    world.sql("update items set v = 2 where id <= 500").await;
    a.polled().await;
    for id in 1..=10 {
        assert_eq!(a.fresh_from(id).await, (Some(2), Tier::Load));
    }
    for id in 590..=600 {
        assert_eq!(a.fresh_from(id).await, (Some(1), Tier::Local));
    }

    world.sql("update items set v = 3 where id <= 501").await;
    a.polled().await;
    for id in 1..=10 {
        assert_eq!(a.fresh_from(id).await, (Some(3), Tier::Load));
    }
    for id in 590..=600 {
        // Neither from L1 nor from L2: nothing says that it was not written.
        assert_eq!(a.fresh_from(id).await, (Some(1), Tier::Load));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncate_clears_the_cache() {
    let world = World::new().await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    world.sql("insert into items select n, 1 from generate_series(1, 20) n").await;
    a.polled().await;
    warm(&a, 1..=20).await;
    world.sql("truncate items").await;
    a.polled().await;
    b.polled().await;
    for id in 1..=20 {
        assert_eq!((a.fresh(id).await, b.fresh(id).await), (None, None));
    }
}

/// A transaction that has written stays open for the whole test. One load after each write, shared through L2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_long_write_transaction_reads_stay_cached() {
    let world = World::new().await;
    world
        .sql("insert into items select n, 1 from generate_series(1, 10) n; insert into items values (99, 1)")
        .await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    let mut long = PgConnection::connect(&world.database).await.unwrap();
    let mut tx = long.begin().await.unwrap();
    let update = format!("update {}.items set v = 2 where id = 99", world.name);
    sqlx::raw_sql(sqlx::AssertSqlSafe(update)).execute(&mut *tx).await.unwrap();
    assert_eq!(a.fresh(99).await, Some(1));

    for v in 2..=4 {
        let loads = a.loads() + b.loads();
        for id in 1..=10 {
            a.put(&world, id, v).await;
        }
        a.polled().await;
        b.polled().await;
        for _ in 0..20 {
            for id in 1..=10 {
                assert_eq!(a.fresh(id).await, Some(v));
            }
        }
        eventually("another instance finds them in L2", async || {
            let read = b.fresh_from(10).await;
            assert_eq!(read.0, Some(v));
            read.1 != Tier::Load || {
                b.items.invalidate(&10).await.unwrap();
                a.fresh(10).await;
                false
            }
        })
        .await;
        for id in 1..=9 {
            assert_eq!(b.fresh(id).await, Some(v));
        }
        let loads = a.loads() + b.loads() - loads;
        // Ten, and a few where a fill was not there yet. It would be 200 and more if stamps were only an xmin.
        assert!(loads <= 30, "{loads}");
    }
    assert_eq!((a.fresh(99).await, b.fresh(99).await), (Some(1), Some(1)), "not committed");
    tx.commit().await.unwrap();
    a.polled().await;
    b.polled().await;
    assert_eq!((a.fresh(99).await, b.fresh(99).await), (Some(2), Some(2)), "its row was written long ago");
}

/// Committed after 5 polls had passed its row by: a cursor of highest numbers would skip it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_commits_after_younger_ones_is_not_skipped() {
    let world = World::new().await;
    world.sql("insert into items select n, 1 from generate_series(1, 10) n").await;
    let a = world.start().await;
    warm(&a, 1..=10).await;
    let mut open = Vec::new();
    for id in 1..=5_i64 {
        let mut tx = world.pool.begin().await.unwrap();
        sqlx::query("update items set v = 2 where id = $1").bind(id).execute(&mut *tx).await.unwrap();
        open.push(tx);
    }
    for round in 1..=5 {
        world.put(10, 10 + round).await;
        a.polled().await;
        assert_eq!(a.fresh(10).await, Some(10 + round));
        // The youngest first.
        open.pop().unwrap().commit().await.unwrap();
        a.polled().await;
        for id in 1..=5_i64 {
            assert_eq!(a.fresh(id).await, Some(if id > 5 - round { 2 } else { 1 }), "{id} in round {round}");
        }
    }
}

/// The function runs with its owner's rights.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_only_write_the_table_still_invalidates() {
    let world = World::new().await;
    let a = world.start().await;
    world.put(1, 1).await;
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(1));
    let role = format!("{}_writer", world.name);
    world
        .sql(&format!(
            "create role {role}; grant usage on schema {0} to {role}; grant select, update on {0}.items to {role}; \
             set role {role}; update {0}.items set v = 2 where id = 1; reset role",
            world.name
        ))
        .await;
    let right: bool = sqlx::query_scalar("select has_table_privilege($1, $2, 'insert')")
        .bind(&role)
        .bind(format!("{}.invalidation", world.name))
        .fetch_one(&world.pool)
        .await
        .unwrap();
    // Roles are the whole cluster's: gone before anything can fail.
    world.sql(&format!("drop owned by {role}; drop role {role}")).await;
    assert!(!right);
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(2));
}

/// Before: stale until the time to live. From the moment `watch` returns: nothing loaded earlier is trusted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_watched_while_it_is_read_is_coherent_from_then_on() {
    let world = World::new().await;
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    let watch = world.watch("items", "item");
    postgres::unwatch(&mut connection, &watch).await.unwrap();
    let unwatched = async || world.start_with(PertoBuilder::allow_unwatched, |cache| cache).await;
    let (a, b) = (unwatched().await, unwatched().await);
    coherent([&a, &b]).await;
    // Each has cleared the cache for what it found, and the other one may not have heard of that yet.
    a.polled().await;
    b.polled().await;
    let table = format!("{}.items", world.name);
    assert_eq!(a.unwatched(), [table]);
    world.sql("insert into items select n, 1 from generate_series(1, 3) n").await;
    warm(&a, 1..=2).await;
    warm(&b, 1..=2).await;
    a.gate.close();
    let reading = a.reading(3);
    a.gate.holds(1).await;
    world.sql("update items set v = 2").await;
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(1), "nobody was told: the time to live is all there is");

    postgres::watch(&mut connection, &watch).await.unwrap();
    a.polled().await;
    b.polled().await;
    a.gate.open();
    ends("the held read", reading).await.unwrap().unwrap();
    for id in 1..=3 {
        assert_eq!((a.fresh(id).await, b.fresh(id).await), (Some(2), Some(2)), "{id}");
    }
    world.sql("update items set v = 3").await;
    a.polled().await;
    b.polled().await;
    for id in 1..=3 {
        assert_eq!((a.fresh(id).await, b.fresh(id).await), (Some(3), Some(3)), "{id}");
    }
}

/// Through the parent and through a partition by its own name: each fires its own triggers only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_table_is_watched_with_its_partitions() {
    let world = World::new().await;
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    postgres::unwatch(&mut connection, &world.watch("items", "item")).await.unwrap();
    world
        .sql(
            "drop table items; \
             create table items (id bigint primary key, v bigint not null) partition by range (id); \
             create table low partition of items for values from (0) to (100); \
             create table high partition of items for values from (100) to (200)",
        )
        .await;
    let watched = postgres::watch(&mut connection, &world.watch("items", "item")).await.unwrap();
    assert_eq!(watched.len(), 3, "{watched:?}");
    let a = world.start().await;
    assert_eq!(a.unwatched(), [""; 0]);
    for (v, sql) in [
        (1, "insert into items values (1, 1), (101, 1)"),
        (2, "update items set v = 2"),
        (3, "update low set v = 3; update high set v = 3"),
        (
            4,
            "delete from low; delete from high; insert into low values (1, 4); insert into high values (101, 4)",
        ),
    ] {
        a.fresh(1).await;
        a.fresh(101).await;
        world.sql(sql).await;
        a.polled().await;
        assert_eq!((a.fresh(1).await, a.fresh(101).await), (Some(v), Some(v)), "{sql}");
    }
    world.sql("truncate low").await;
    a.polled().await;
    assert_eq!((a.fresh(1).await, a.fresh(101).await), (None, Some(4)));

    // A partition that comes later is told of at the next start.
    world.sql("create table top partition of items for values from (200) to (300)").await;
    let b = world.start_with(PertoBuilder::allow_unwatched, |cache| cache).await;
    let troubles = b.troubles(TroubleKind::Unwatched);
    assert_eq!(troubles.len(), 1);
    let (top, low) = (format!("{}.top", world.name), format!("{}.low", world.name));
    assert!(troubles[0].detail.contains(&top) && !troubles[0].detail.contains(&low), "{troubles:?}");
}

/// What is wrong has a name, and nothing is left half-way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_what_does_not_exist_is_refused_by_name_and_leaves_nothing() {
    let world = World::new().await;
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    let triggers = format!("pg_trigger where tgname like '{}:%'", world.name);
    let before = world.count(&triggers).await;
    let good = world.watch("items", "other");
    let wrong = [
        (Watch { table: format!("{}.nowhere", world.name), ..good.clone() }, "nowhere"),
        (Watch { key: "no_such_column".to_owned(), ..good.clone() }, "no_such_column"),
        (Watch { key: "id +".to_owned(), ..good.clone() }, "id +"),
        (Watch { schema: "No Schema".to_owned(), ..good.clone() }, "No Schema"),
    ];
    for (watch, name) in wrong {
        match postgres::watch(&mut connection, &watch).await {
            Err(LogError::Schema(told)) => assert!(told.contains(name), "{told}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(world.count(&triggers).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unwatch_removes_all_that_watch_made() {
    let world = World::new().await;
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    let triggers = format!("pg_trigger where tgname like '{}:%'", world.name);
    let functions =
        format!("pg_proc where pronamespace = '{}'::regnamespace and proname like 'item:%'", world.name);
    assert_eq!((world.count(&triggers).await, world.count(&functions).await), (4, 1));
    // Twice is once.
    postgres::watch(&mut connection, &world.watch("items", "item")).await.unwrap();
    assert_eq!((world.count(&triggers).await, world.count(&functions).await), (4, 1));
    postgres::unwatch(&mut connection, &world.watch("items", "item")).await.unwrap();
    assert_eq!((world.count(&triggers).await, world.count(&functions).await), (0, 0));
    world.put(1, 1).await;
    let rows = world.count("invalidation where keys is not null").await;
    assert_eq!(rows, 0, "writes are not logged any more");
}
