//! What is written when a transaction ends: by deferred triggers, and by `invalidate_in`.

use perto::{ReadOptions, Tier};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::world::{Instance, World, coherent};

/// Rounds of a write and a read of it.
const ROUNDS: i64 = 50;

async fn write(world: &World, a: &Instance, sql: String) -> Result<Option<perto::Token>, sqlx::Error> {
    let work =
        async move |tx: &mut PgConnection| sqlx::raw_sql(AssertSqlSafe(sql)).execute(tx).await.map(drop);
    a.perto.write(&world.pool, work).await.map(|written| written.token)
}

/// Each round through `a`: at once there, and on `b` by the token.
async fn reads_its_own_writes(world: &World, sql: impl Fn(i64) -> String) {
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    for v in 1..=ROUNDS {
        a.fresh(1).await;
        b.fresh(1).await;
        let token = write(world, &a, sql(v)).await.unwrap().expect("it wrote a watched table");
        assert_eq!(a.fresh(1).await, Some(v), "on the writer's own instance");
        let read = b.items.get_with(&1, ReadOptions::at_least(token)).await.unwrap();
        assert_eq!(read.value(), Some(&v), "on another one");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deferred_trigger_writes_is_read_back_at_once() {
    let world = World::new().await;
    let schema = &world.name;
    world.put(1, 0).await;
    world
        .sql(&format!(
            "create table orders (id bigint generated always as identity, v bigint); \
             create function {schema}.apply() returns trigger language plpgsql as \
               $$begin update {schema}.items set v = new.v where id = 1; return null; end$$; \
             create constraint trigger applied after insert on orders deferrable initially deferred \
               for each row execute function {schema}.apply()"
        ))
        .await;
    reads_its_own_writes(&world, |v| format!("insert into orders (v) values ({v})")).await;
}

/// The first deferred trigger writes to a table with another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_deferred_trigger_makes_another_write_is_read_back_at_once() {
    let world = World::new().await;
    let schema = &world.name;
    world.put(1, 0).await;
    let apply = |name: &str, sql: &str| {
        format!(
            "create function {schema}.{name}() returns trigger language plpgsql as \
               $$begin {sql}; return null; end$$; "
        )
    };
    let deferred = |table: &str, function: &str| {
        format!(
            "create constraint trigger applied after insert on {table} deferrable initially deferred \
               for each row execute function {schema}.{function}(); "
        )
    };
    let sql = [
        "create table orders (v bigint); create table lines (v bigint); ".to_owned(),
        apply("to_lines", &format!("insert into {schema}.lines values (new.v)")),
        apply("to_items", &format!("update {schema}.items set v = new.v where id = 1")),
        deferred("orders", "to_lines"),
        deferred("lines", "to_items"),
    ];
    world.sql(&sql.concat()).await;
    reads_its_own_writes(&world, |v| format!("insert into orders values ({v})")).await;
}

/// A foreign key's own action: Postgres defers the check of such a constraint, and never what it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_deferred_foreign_key_changes_is_read_back_at_once() {
    let world = World::new().await;
    world
        .sql(
            "create table owners (v bigint primary key); insert into owners values (0); insert into items values (1, 0); \
             alter table items add foreign key (v) references owners on update cascade deferrable initially deferred",
        )
        .await;
    reads_its_own_writes(&world, |v| format!("update owners set v = {v}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deferred_constraint_that_is_violated_is_the_writes_error_and_nothing_is_written() {
    let world = World::new().await;
    world
        .sql(
            "create table owners (id bigint primary key); \
             alter table items add foreign key (v) references owners deferrable initially deferred",
        )
        .await;
    let a = world.start().await;
    let error = write(&world, &a, "insert into items values (1, 1)".to_owned()).await.unwrap_err();
    let code = error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
    assert_eq!(code.as_deref(), Some("23503"), "{error}");
    assert_eq!(world.count("items").await, 0);
    // Put right before the end, it is none.
    let sql = "insert into items values (1, 1); insert into owners values (1)".to_owned();
    write(&world, &a, sql).await.unwrap();
    assert_eq!(a.fresh(1).await, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_invalidated_in_a_transaction_go_with_its_commit_and_stay_without() {
    let world = World::new().await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    world.sql("insert into items select n, 1 from generate_series(1, 4) n").await;
    a.polled().await;
    b.polled().await;
    let warm = async |instance: &Instance| {
        for id in 1..=4 {
            instance.fresh(id).await;
        }
    };
    warm(&a).await;
    warm(&b).await;
    let cached = |instance: &Instance| [1, 2, 3, 4].map(|id| instance.items.get_if_cached(&id).is_some());

    let given_up = a.perto.write(&world.pool, async |tx| {
        a.items.invalidate_in(tx, &[1, 2]).await?;
        Err::<(), _>(sqlx::Error::RowNotFound)
    });
    given_up.await.unwrap_err();
    a.polled().await;
    assert_eq!((cached(&a), cached(&b)), ([true; 4], [true; 4]), "it was rolled back");
    assert_eq!(world.count("invalidation where keys = '{1,2}'").await, 0);

    let hints = b.perto.stats().hints;
    let written: Result<_, sqlx::Error> = a
        .perto
        .write(&world.pool, async |tx| {
            a.items.invalidate_in(tx, &[]).await?;
            a.items.invalidate_in(tx, &[1, 2]).await
        })
        .await;
    let token = written.unwrap().token.expect("it invalidated");
    assert_eq!(cached(&a), [false, false, true, true], "here at once");
    crate::support::wait::eventually("a hint has come", async || b.perto.stats().hints > hints).await;
    assert_eq!(cached(&b), [false, false, true, true]);
    let read = b.items.get_with(&1, ReadOptions::at_least(token)).await.unwrap();
    assert_eq!(read.tier, Tier::Load, "what L2 held is buried");

    // By a transaction of one's own.
    let mut connection = world.pool.acquire().await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    b.items.invalidate_in(&mut tx, &[3]).await.unwrap();
    let pending = b.perto.pending(&mut tx).await.unwrap().expect("it will have invalidated");
    assert!(cached(&b)[2], "not before the commit");
    tx.commit().await.unwrap();
    b.perto.announce_pending(pending).await;
    assert!(!cached(&b)[2]);

    // Nobody announces this one: the log has it.
    let mut tx = connection.begin().await.unwrap();
    b.items.invalidate_in(&mut tx, &[4]).await.unwrap();
    tx.commit().await.unwrap();
    a.polled().await;
    assert!(!cached(&a)[3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_keys_than_a_row_takes_invalidated_in_a_transaction_clear_the_cache() {
    let world = World::new().await;
    let a = world.start().await;
    coherent([&a]).await;
    a.fresh(9_999).await;
    let keys: Vec<i64> = (0..=500).collect();
    let written: Result<_, sqlx::Error> =
        a.perto.write(&world.pool, async |tx| a.items.invalidate_in(tx, &keys).await).await;
    let token = written.unwrap().token.expect("it invalidated").to_string();
    assert!(a.items.get_if_cached(&9_999).is_none());
    let xid = u64::from_str_radix(token.split_once('-').unwrap().1, 16).unwrap();
    assert_eq!(world.count(&format!("invalidation where keys is null and xid = '{xid}'")).await, 1);
}

/// To write a watched table is not the right to invalidate by hand; the grant of two columns is no right to anything else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalidating_in_a_transaction_takes_a_right_of_its_own_and_no_more() {
    let world = World::new().await;
    let a = world.start().await;
    let role = format!("{}_writer", world.name);
    let schema = &world.name;
    world.sql(&format!("create role {role}; grant usage on schema {schema} to {role}; grant insert, update, select on items to {role}")).await;
    let as_role = async |sql: &str, keys: &[i64]| -> Result<Option<perto::Token>, sqlx::Error> {
        let begin = format!("set local role {role}; {sql}");
        let work = async |tx: &mut PgConnection| {
            sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *tx).await?;
            a.items.invalidate_in(tx, keys).await
        };
        a.perto.write(&world.pool, work).await.map(|written| written.token)
    };
    let without = as_role("", &[1]).await;
    let written = as_role("insert into items values (1, 1)", &[]).await;
    world.sql(&format!("grant insert (cache, keys) on invalidation to {role}")).await;
    let with = as_role("", &[1]).await;
    let forged =
        as_role("insert into invalidation (xid, cache, keys) values ('1', 'item', '{1}')", &[]).await;
    let read = as_role("select from invalidation", &[]).await;
    world.sql(&format!("drop owned by {role}; drop role {role}")).await;
    let refused = without.unwrap_err().to_string();
    assert!(refused.contains(&format!("grant insert (cache, keys) on {schema}.invalidation")), "{refused}");
    assert!(written.unwrap().is_some(), "triggers need no right");
    assert!(with.unwrap().is_some());
    for refused in [forged, read] {
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("permission denied"), "{refused}");
    }
}
