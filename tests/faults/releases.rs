//! Two releases on one log and one Redis, as far as one build can show it. `make rolling` runs the real ones.

use perto::postgres::{self, SCHEMA_VERSION, SchemaVersions};
use perto::{Cache, Load, Loaded, Perto, Tier};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::support::engines::{keys, redis_at};
use crate::support::wait::eventually;
use crate::world::{POLL_INTERVAL, REMOTE_TIMEOUT, World, coherent};

/// What a log says of itself.
async fn says(world: &World, oldest: i32, newest: Option<i32>) {
    let of = |name: &str, version: i32| {
        format!(
            "create or replace function {name}() returns integer language sql immutable as 'select {version}';"
        )
    };
    let added = newest.map_or("drop function if exists added()".to_owned(), |newest| of("added", newest));
    world.sql(&(of("version", oldest) + &added)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_adds_and_ends_once_nobody_of_the_version_before_is_connected() {
    let world = World::new().await;
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    let schema = &world.name;
    let versions = async |connection: &mut PgConnection| {
        let SchemaVersions { oldest, newest, .. } =
            postgres::schema_version(connection, schema).await.unwrap().unwrap();
        (oldest, newest)
    };
    assert_eq!(
        versions(&mut connection).await,
        (SCHEMA_VERSION, SCHEMA_VERSION),
        "a new one is for this release"
    );
    assert_eq!(postgres::unfinished(&mut connection, schema).await.unwrap(), None);

    // As the release before left it. It compares one number, and is satisfied by no other.
    says(&world, SCHEMA_VERSION - 1, None).await;
    let early = world.build(|perto| perto, |cache| cache).perto.start().await.unwrap_err();
    assert!(format!("{early:?}").contains("run `perto migrate"), "{early:?}");
    let old: PgConnectOptions = world.database.parse().unwrap();
    let old = PgConnection::connect_with(&old.application_name("perto")).await.unwrap();
    let role = format!("{schema}_owner");
    world.sql(&format!("create role {role}; alter table invalidation owner to {role}")).await;
    postgres::migrate(&mut connection, schema).await.unwrap();
    let owners = "select proowner::regrole::text from pg_proc \
         where pronamespace = $1::regnamespace and proname in ('added', 'version')";
    let owners: Vec<String> =
        sqlx::query_scalar(owners).bind(schema).fetch_all(&mut connection).await.unwrap();
    assert_eq!(owners, [role.as_str(); 2], "whoever owns the log upgrades it");
    world
        .sql(&format!("reassign owned by {role} to current_user; drop owned by {role}; drop role {role}"))
        .await;
    assert_eq!(versions(&mut connection).await, (SCHEMA_VERSION - 1, SCHEMA_VERSION));
    assert_eq!(postgres::migrate_sql(&mut connection, schema).await.unwrap(), None);
    let a = world.start().await;
    coherent([&a]).await;
    // Who may create functions must not have theirs run by who upgrades.
    let planted = "create function format(text, integer, name, text) returns text language sql as 'select ''planted''::text'; \
         create function host(inet) returns text language sql as 'select ''planted''::text'";
    world.sql(planted).await;
    let path = format!("set search_path = {schema}, pg_catalog");
    sqlx::raw_sql(AssertSqlSafe(path)).execute(&mut connection).await.unwrap();
    let unfinished = postgres::unfinished(&mut connection, schema).await.unwrap().unwrap();
    let is_told =
        unfinished.running.iter().all(|told| told.starts_with("process ") && !told.contains("planted"));
    assert!(is_told, "{unfinished:?}");
    assert_eq!((unfinished.oldest, unfinished.running.len()), (SCHEMA_VERSION - 1, 1), "{unfinished:?}");
    let refused = postgres::finish(&mut connection, schema).await.unwrap_err().to_string();
    assert!(refused.contains(&unfinished.running[0]), "{refused}");
    assert_eq!(versions(&mut connection).await, (SCHEMA_VERSION - 1, SCHEMA_VERSION));

    old.close().await.unwrap();
    let mut looking = PgConnection::connect(&world.database).await.unwrap();
    eventually("the old one is gone", async || {
        postgres::unfinished(&mut looking, schema).await.unwrap().unwrap().running.is_empty()
    })
    .await;
    assert!(postgres::finish(&mut connection, schema).await.unwrap());
    assert_eq!(versions(&mut connection).await, (SCHEMA_VERSION, SCHEMA_VERSION));
    assert!(!postgres::finish(&mut connection, schema).await.unwrap(), "there is nothing to end");
    a.polled().await;
    assert_eq!(a.perto.health().troubles, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn this_release_goes_on_beside_the_next_until_that_has_finished() {
    let world = World::new().await;
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    let schema = &world.name;
    let a = world.start().await;
    coherent([&a]).await;
    says(&world, SCHEMA_VERSION, Some(SCHEMA_VERSION + 1)).await;
    a.polled().await;
    let b = world.start().await;
    coherent([&a, &b]).await;
    assert_eq!(postgres::migrate_sql(&mut connection, schema).await.unwrap(), None, "it takes nothing away");
    let refused = postgres::finish(&mut connection, schema).await.unwrap_err().to_string();
    assert!(refused.contains("by a newer Perto"), "{refused}");
    says(&world, SCHEMA_VERSION + 1, Some(SCHEMA_VERSION + 1)).await;
    a.becomes(perto::State::Unverified).await;
    let late = world.build(|perto| perto, |cache| cache).perto.start().await.unwrap_err();
    assert!(format!("{late:?}").contains("use a newer Perto"), "{late:?}");
    // One release at a time.
    says(&world, SCHEMA_VERSION - 2, Some(SCHEMA_VERSION - 1)).await;
    let refused = postgres::migrate(&mut connection, schema).await.unwrap_err().to_string();
    assert!(refused.contains("is not finished"), "{refused}");
}

/// The row of the release before, and of the next: two numbers have changed places.
mod old {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    pub(super) struct Item {
        pub(super) id: i64,
        pub(super) v: i64,
    }
}

mod new {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    pub(super) struct Item {
        pub(super) v: i64,
        pub(super) id: i64,
    }
}

async fn release<V: perto::Value>(world: &World, item: fn(i64, i64) -> V) -> (Perto, Cache<i64, V>) {
    let builder =
        Perto::builder(&world.name).schema(&world.name).postgres(&world.database).redis(&world.redis);
    let perto = builder.poll_interval(POLL_INTERVAL).remote_timeout(REMOTE_TIMEOUT).build().unwrap();
    let pool = world.pool.clone();
    let load = move |load: Load<i64>| {
        let pool = pool.clone();
        async move { read(&pool, &load.keys, item).await }
    };
    let items = perto.cache("item").tables([format!("{}.items", world.name)]).loader(load).unwrap();
    perto.start().await.unwrap();
    perto.ready().await.unwrap();
    (perto, items)
}

async fn read<V>(
    pool: &PgPool,
    keys: &[i64],
    item: fn(i64, i64) -> V,
) -> Result<Loaded<i64, V>, sqlx::Error> {
    let rows = postgres::query_as::<(i64, i64)>("select id, v from items where id = any($1)");
    rows.bind(keys).fetch(pool).await.map(|rows| rows.by_key(|(id, v)| (id, item(id, v))))
}

/// What the old release has left in L2 lies under names that the new one does not know, so nobody buries it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rollback_what_the_release_before_left_in_l2_is_served_only_where_nothing_was_written_since()
{
    let world = World::new().await;
    for id in 1..=3 {
        world.put(id, 10 * id).await;
    }
    let old_item = |id, v| old::Item { id, v };
    let new_item = |id, v| new::Item { id, v };
    let mut redis = redis_at(&world.redis).await;
    let pattern = format!("perto:{}:*", world.name);
    let (first, items) = release(&world, old_item).await;
    let kind = items.kind().to_owned();
    items.get_many(&[1, 2, 3]).await.unwrap();
    eventually("all are in L2", async || keys(&mut redis, &pattern).await.unwrap().len() == 3).await;
    first.shutdown().await;

    // The new release alone: a write of its own, and one by hand.
    let (second, items) = release(&world, new_item).await;
    assert_ne!(kind, items.kind());
    let found = items.get(&1).await.unwrap();
    assert_eq!((found.tier, found.value()), (Tier::Load, Some(&new::Item { id: 1, v: 10 })));
    let write = sqlx::query(AssertSqlSafe("update items set v = 11 where id = 1"));
    let written: Result<_, sqlx::Error> =
        second.write(&world.pool, async move |tx| write.execute(tx).await).await;
    written.unwrap();
    world.put(2, 21).await;
    let found = items.get(&1).await.unwrap();
    assert_eq!(found.value(), Some(&new::Item { id: 1, v: 11 }));
    second.shutdown().await;
    let of_old = keys(&mut redis, &format!("perto:{}:*:{kind}:*", world.name)).await.unwrap();
    assert_eq!(of_old.len(), 3, "{of_old:?}: nobody has touched them");

    // The old one again.
    let (third, items) = release(&world, old_item).await;
    for (id, v, tier) in [(1, 11, Tier::Load), (2, 21, Tier::Load), (3, 30, Tier::Remote)] {
        let read = items.get(&id).await.unwrap();
        assert_eq!((read.value(), read.tier), (Some(&old::Item { id, v }), tier));
        assert_eq!(read.freshness, perto::Freshness::Fresh);
    }
    assert_eq!((items.stats().l2_refused, items.stats().l2_unreadable), (2, 0), "by their stamps");
    third.shutdown().await;
}
