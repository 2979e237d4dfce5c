//! The record of what is watched, and what becomes of it.

use perto::postgres::{self, Fault, FunctionChange, Watch, Watched};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::world::{World, coherent};

async fn connected(world: &World) -> PgConnection {
    PgConnection::connect(&world.database).await.unwrap()
}

async fn watched(world: &World) -> Vec<Watched> {
    postgres::watched(&mut connected(world).await, &world.name).await.unwrap()
}

/// The faults of the one table that is watched.
async fn faults(world: &World) -> Vec<Fault> {
    let mut watched = watched(world).await;
    assert_eq!(watched.len(), 1, "{watched:?}");
    watched.remove(0).faults
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_watched_is_recorded_and_forgotten_with_its_triggers() {
    let world = World::new().await;
    let mut connection = connected(&world).await;
    let items = format!("{}.items", world.name);
    let healthy = watched(&world).await;
    assert_eq!(healthy.len(), 1, "{healthy:?}");
    assert_eq!(healthy[0].watch, Watch { table: items.clone(), ..world.watch("items", "item") });
    assert_eq!((healthy[0].recorded, &healthy[0].tables, &healthy[0].faults), (true, &vec![items], &vec![]));
    // Twice is once, and what is refused is not recorded.
    postgres::watch(&mut connection, &world.watch("items", "item")).await.unwrap();
    let wrong = Watch { key: "no_such_column".to_owned(), ..world.watch("items", "other") };
    postgres::watch(&mut connection, &wrong).await.unwrap_err();
    assert_eq!(watched(&world).await, healthy);
    postgres::unwatch(&mut connection, &world.watch("items", "item")).await.unwrap();
    assert_eq!(watched(&world).await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_dropped_is_told_from_one_that_was_made_again() {
    let world = World::new().await;
    let (mut connection, items) = (connected(&world).await, format!("{}.items", world.name));
    let gone = Watch { table: items.clone(), ..world.watch("items", "item") };
    world.sql("drop table items").await;
    assert_eq!(faults(&world).await, [Fault::Gone]);
    world.sql("create table items (id bigint primary key, v bigint not null)").await;
    assert_eq!(faults(&world).await, [Fault::Replaced { table: items }]);
    postgres::watch(&mut connection, &gone).await.unwrap();
    assert_eq!(faults(&world).await, []);
    // A table of another name in its place: loaders read that one.
    world.sql("alter table items rename to before").await;
    assert_eq!(faults(&world).await, [], "its triggers fire under any name");
    world.sql("create table items (like before)").await;
    assert_eq!(faults(&world).await.len(), 1);
    world.sql("drop table items, before").await;
    assert_eq!(faults(&world).await, [Fault::Gone]);
    assert_eq!(postgres::unwatch(&mut connection, &gone).await.unwrap(), std::slice::from_ref(&gone.table));
    assert_eq!(watched(&world).await, []);
    postgres::unwatch(&mut connection, &gone).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trigger_that_is_missing_disabled_or_not_always_on_is_told_of() {
    let world = World::new().await;
    let (table, trigger) =
        (format!("{}.items", world.name), |event: &str| format!("\"{}:item:{event}\"", world.name));
    world.sql(&format!("drop trigger {} on items", trigger("insert"))).await;
    world.sql(&format!("alter table items disable trigger {}", trigger("update"))).await;
    world.sql(&format!("alter table items enable trigger {}", trigger("delete"))).await;
    world.sql(&format!("alter table items enable replica trigger {}", trigger("truncate"))).await;
    let expected = [
        Fault::Missing { table: table.clone(), event: "insert" },
        Fault::Disabled { table: table.clone(), event: "update" },
        Fault::NotAlways { table: table.clone(), event: "delete" },
        Fault::NotAlways { table, event: "truncate" },
    ];
    assert_eq!(faults(&world).await, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_trigger_function_is_told_of() {
    let world = World::new().await;
    // By a key that needs settings.
    let watch = Watch { key: "id || ''".to_owned(), ..world.watch("items", "item") };
    postgres::rewatch(&mut connected(&world).await, &watch).await.unwrap();
    let function: String =
        sqlx::query_scalar("select oid::regprocedure::text from pg_proc where pronamespace = $1::regnamespace and proname like 'item:%'")
            .bind(&world.name)
            .fetch_one(&world.pool)
            .await
            .unwrap();
    let role = format!("{}_poor", world.name);
    let steps = [
        (format!("alter function {function} reset timezone"), FunctionChange::Session),
        (format!("alter function {function} security invoker"), FunctionChange::Session),
        (format!("grant execute on function {function} to public"), FunctionChange::Public),
        (
            format!(
                "create role {role}; grant create on schema {} to {role}; alter function {function} owner to {role}",
                world.name
            ),
            FunctionChange::Owner,
        ),
        (
            format!(
                "create or replace function {function} returns trigger language plpgsql as 'begin return null; end'"
            ),
            FunctionChange::Body,
        ),
    ];
    let mut seen = Vec::new();
    for (sql, _) in &steps {
        world.sql(sql).await;
        seen.push(faults(&world).await);
    }
    // Roles are the whole cluster's: gone before anything can fail.
    world
        .sql(&format!(
            "alter function {function} owner to current_user; drop owned by {role}; drop role {role}"
        ))
        .await;
    for ((sql, change), faults) in steps.iter().zip(seen) {
        let told = faults
            .iter()
            .any(|fault| matches!(fault, Fault::Function { change: found, .. } if found == change));
        assert!(told, "{sql}: {faults:?}");
    }
    postgres::watch(&mut connected(&world).await, &watch).await.unwrap();
    assert_eq!(faults(&world).await, []);
}

/// A statement that names an inheriting table fires only that table's triggers, and a reader of the parent sees its rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inheriting_table_is_watched_with_its_parent() {
    let world = World::new().await;
    world.sql("create table special (note text) inherits (items)").await;
    let mut connection = connected(&world).await;
    let tables = postgres::watch(&mut connection, &world.watch("items", "item")).await.unwrap();
    assert_eq!(tables.len(), 2, "{tables:?}");
    let a = world.start().await;
    coherent([&a]).await;
    world.sql("insert into special values (7, 1, 'x')").await;
    a.polled().await;
    assert_eq!(a.fresh(7).await, Some(1));
    for (v, sql) in [(2, "update special set v = 2"), (3, "update items set v = 3")] {
        world.sql(sql).await;
        a.polled().await;
        assert_eq!(a.fresh(7).await, Some(v), "{sql}");
    }
    world.sql("create table later () inherits (special)").await;
    assert_eq!(faults(&world).await, [Fault::Uncovered { table: format!("{}.later", world.name) }]);
}

/// The log's tables as that version left them, in the place of today's.
async fn as_of(world: &World, version: usize) {
    let steps = [
        include_str!("../../src/log/postgres/schema.sql"),
        include_str!("../../src/log/postgres/schema-2.sql"),
        include_str!("../../src/log/postgres/schema-3.sql"),
        include_str!("../../src/log/postgres/schema-4.sql"),
        include_str!("../../src/log/postgres/schema-5.sql"),
        include_str!("../../src/log/postgres/schema-6.sql"),
    ];
    world.sql("drop table switch, watched, tick, boot, invalidation").await;
    let functions = ["origin", "epoch", "pending", "version", "home", "added"]
        .map(|name| format!("{}.{name}()", world.name));
    world.sql(&format!("drop function {}, pending(text)", functions.join(", "))).await;
    for step in &steps[..version] {
        let step = step.replace("create schema if not exists perto;", "");
        let step = step.replace("on schema perto to", &format!("on schema {} to", world.name));
        world.sql(&step.replace("perto.", &format!("{}.", world.name))).await;
    }
    if version < 4 {
        world.sql(&format!("update meta set version = {version}")).await;
    }
}

/// The first version's tables, with triggers on them: migrated, they are told of until they are watched again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_the_first_version_is_upgraded_and_watching_again_records() {
    let world = World::new().await;
    let (schema, role) = (&world.name, format!("{}_reader", world.name));
    let mut connection = connected(&world).await;
    as_of(&world, 1).await;
    // What an instance's role has.
    world
        .sql(&format!(
            "create role {role}; grant select, insert, delete on invalidation to {role}; \
        grant usage on schema {schema} to {role}"
        ))
        .await;
    let before = postgres::watch(&mut connection, &world.watch("items", "item")).await;
    postgres::migrate(&mut connection, schema).await.unwrap();
    postgres::migrate(&mut connection, schema).await.unwrap();
    world.sql("insert into watched (relid, name, cache, key) values (1, 'public.x', 'x', 'id')").await;
    let as_role = format!("set role {role}; set search_path = {schema}");
    sqlx::raw_sql(AssertSqlSafe(as_role)).execute(&mut connection).await.unwrap();
    let mut refused = Vec::new();
    for sql in [
        "select 1 from watched",
        "insert into watched (relid, name, cache, key) values (2, 'public.x', 'x', 'pg_sleep(1)')",
        "update watched set key = 'pg_sleep(1)'",
        "delete from watched",
        "truncate watched",
    ] {
        let done = sqlx::raw_sql(sql).execute(&mut connection).await;
        refused.push(done.is_err_and(|error| error.to_string().contains("permission denied")));
    }
    let kept = "select array_agg(has_table_privilege('invalidation', p) order by p) = '{t,t,t,f}' \
        from unnest(array['delete', 'insert', 'select', 'truncate']) p";
    let kept: bool = sqlx::query_scalar(kept).fetch_one(&mut connection).await.unwrap();
    let clean_up = format!("reset role; reset search_path; drop owned by {role}; drop role {role}");
    sqlx::raw_sql(AssertSqlSafe(clean_up)).execute(&mut connection).await.unwrap();
    world.sql("delete from watched").await;
    assert!(kept, "what it might do with the log it may still");
    // The doctor tells an admin to run what is recorded.
    assert_eq!(refused, [false, true, true, true, true], "it may read what is recorded, and not write it");
    assert!(before.unwrap_err().to_string().contains("perto migrate"));
    let old = watched(&world).await;
    assert_eq!((old.len(), old[0].recorded), (1, false), "{old:?}");
    postgres::watch(&mut connection, &world.watch("items", "item")).await.unwrap();
    let new = watched(&world).await;
    assert_eq!((new.len(), new[0].recorded, &new[0].faults), (1, true, &vec![]), "{new:?}");
    let a = world.start().await;
    coherent([&a]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upgrade_adds_runs_as_who_owns_the_log_and_also_where_nothing_may_be_written() {
    let world = World::new().await;
    let (schema, role) = (&world.name, format!("{}_owner", world.name));
    let mut connection = connected(&world).await;
    // To an application that owns its log.
    as_of(&world, 2).await;
    world.sql(&format!("create role {role}; alter table invalidation owner to {role}")).await;
    postgres::migrate(&mut connection, schema).await.unwrap();
    let sql = format!(
        "select proowner::regrole::text from pg_proc where oid = '{schema}.pending(text)'::regprocedure"
    );
    let owner: String = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap();
    let reading = format!("begin read only; select * from {schema}.pending('x'); commit");
    let read = sqlx::raw_sql(AssertSqlSafe(reading)).execute(&mut connection).await;
    let clean_up = format!("reassign owned by {role} to current_user; drop role {role}");
    let mut again = connected(&world).await;
    sqlx::raw_sql(AssertSqlSafe(clean_up)).execute(&mut again).await.unwrap();
    assert_eq!(owner, role, "not as whoever upgrades: the table may have triggers of its owner's");
    read.unwrap();
}

/// With the functions that version wrote: they go on, and watching again replaces them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_a_version_before_is_upgraded_with_its_rows_and_rights() {
    for version in [5, 6] {
        upgraded_with_its_rows_and_rights(version).await;
    }
}

async fn upgraded_with_its_rows_and_rights(version: usize) {
    let world = World::new().await;
    let (schema, role) = (&world.name, format!("{}_reader", world.name));
    let mut connection = connected(&world).await;
    as_of(&world, version).await;
    // What it wrote for this key, in short.
    let function: String =
        sqlx::query_scalar("select p.oid::regproc::text from pg_proc p where p.pronamespace = $1::regnamespace and proname like 'item:%'")
            .bind(schema)
            .fetch_one(&world.pool)
            .await
            .unwrap();
    world
        .sql(&format!(
            "create or replace function {function}() returns trigger language plpgsql security definer set search_path = pg_catalog, pg_temp \
               as 'begin insert into {schema}.invalidation (cache, keys) values (''item'', ''{{1}}''); return null; end'; \
             create role {role}; grant select, insert, delete on invalidation to {role}; \
             insert into items values (1, 1)"
        ))
        .await;
    postgres::migrate(&mut connection, schema).await.unwrap();
    assert_eq!(postgres::migrate_sql(&mut connection, schema).await.unwrap(), None);
    world.sql("update items set v = 2").await;
    let kept = format!(
        "select array_agg(has_table_privilege('{role}', 'invalidation', p) order by p) = '{{t,t,t,f}}' \
         from unnest(array['delete', 'insert', 'select', 'truncate']) p"
    );
    let kept: bool = sqlx::query_scalar(AssertSqlSafe(kept)).fetch_one(&world.pool).await.unwrap();
    world.sql(&format!("drop owned by {role}; drop role {role}")).await;
    assert!(kept);
    assert_eq!(world.count("invalidation where keys = '{1}'").await, 2, "from before and after");
    assert_eq!(
        world.count("pg_constraint where conrelid = 'invalidation'::regclass and contype = 'c'").await,
        0
    );
    assert_eq!(
        world.count("pg_class where oid = 'invalidation'::regclass and relpersistence = 'u'").await,
        1
    );
    // It was restored without what is recorded of it.
    postgres::watch(&mut connection, &world.watch("items", "item")).await.unwrap();
    assert_eq!(faults(&world).await, []);
    let a = world.start().await;
    coherent([&a]).await;
    assert_eq!(a.fresh(1).await, Some(2));
    world.put(1, 3).await;
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(3));
}
