//! A cache whose table is forgotten, misspelled or another one than the loader reads: the start says so.

use perto::postgres;
use perto::{Cache, Error, LogError, Perto, PertoBuilder, StartError, State, Tier, TroubleKind};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::task::JoinSet;

use crate::support::wait::eventually;
use crate::world::World;

/// What `start` says of a table that is declared.
async fn said_of(world: &World, table: &str) -> String {
    let a = world.build(|perto| perto, |cache| cache.tables([table]));
    match a.perto.start().await {
        Err(error @ StartError::Unwatched(_)) => error.to_string(),
        other => panic!("{table}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_fails_with_what_mends_it_where_a_declared_table_is_missing_or_not_watched() {
    let world = World::new().await;
    let schema = &world.name;
    world
        .sql(
            "create table free (id bigint); create view seen as select * from items; \
             create materialized view kept as select * from items; create sequence numbers",
        )
        .await;
    world.sql(&format!("alter table items disable trigger \"{schema}:item:delete\"")).await;
    let mend =
        |table: &str| format!("`perto watch {schema}.{table} --cache item --key KEY --schema {schema}`");
    for (table, says) in [
        (format!("{schema}.free"), mend("free")),
        (format!("{schema}.items"), mend("items")),
        (format!("{}.ITEMS", schema.to_uppercase()), mend("items")),
        (format!("{schema}.nowhere"), format!("there is no table {schema}.nowhere")),
        (format!("{schema}_nowhere.items"), format!("there is no table {schema}_nowhere.items")),
        (format!("{schema}.seen"), "is no table".to_owned()),
        (format!("{schema}.kept"), "is no table".to_owned()),
        (format!("{schema}.numbers"), "is no table".to_owned()),
        ("no such; table".to_owned(), "is no name of a table".to_owned()),
        (String::new(), "is no name of a table".to_owned()),
        ("a.b.c.d".to_owned(), "is no name of a table".to_owned()),
        ("other.public.users".to_owned(), "is no name of a table".to_owned()),
    ] {
        let said = said_of(&world, &table).await;
        assert!(said.contains(&says), "{table}: {said}");
        assert!(said.contains("cache item") && said.contains(&format!("{table:?}")), "{table}: {said}");
    }
    // All that is wrong at once, one that is no name among them, and nothing of what is right.
    world.sql(&format!("alter table items enable always trigger \"{schema}:item:delete\"")).await;
    let all = ["items", "free", "nowhere"].map(|table| format!("{schema}.{table}"));
    let declared = all.clone().into_iter().chain(["no such; table".to_owned()]);
    let a = world.build(|perto| perto, |cache| cache.tables(declared));
    let said = a.perto.start().await.unwrap_err().to_string();
    assert!(said.contains("no such; table") && all[1..].iter().all(|table| said.contains(table)), "{said}");
    assert!(!said.contains(&all[0]), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_declares_how_a_table_is_watched_is_told_the_command_with_that_key_also_where_main_fails() {
    let world = World::new().await;
    world.sql("create table own (id bigint primary key, v bigint)").await;
    let schema = &world.name;
    let perto = Perto::builder(schema).postgres(&world.database).schema(schema).build().unwrap();
    let table = format!("{schema}.own");
    let cache = perto.cache("own").watch_columns(&table, "id % 10", ["v"]);
    let sql = format!("select id, v from {table} where id = any($1)");
    let _own: Cache<i64, i64> = cache.loader(postgres::by_key(&world.pool, &sql)).unwrap();
    let error = perto.start().await.unwrap_err();
    let command = format!("perto watch {table} --cache own --key 'id % 10' --columns v --schema {schema}");
    let says = format!("writes to {table} are not seen: run `{command}`, or call `Perto::migrate`");
    assert!(error.to_string().contains(&says), "{error}");
    // As `main` shows the error that it returns.
    assert_eq!(format!("{error:?}"), error.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_was_refused_succeeds_once_the_table_is_watched() {
    let world = World::new().await;
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    let watch = world.watch("items", "item");
    postgres::unwatch(&mut connection, &watch).await.unwrap();
    let a = world.build(|perto| perto, |cache| cache);
    a.perto.start().await.unwrap_err();
    postgres::watch(&mut connection, &watch).await.unwrap();
    a.perto.start().await.unwrap();
    assert_eq!(a.perto.health().troubles, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_it_is_allowed_what_is_not_watched_is_a_trouble_of_its_cache() {
    let world = World::new().await;
    world.sql("create table free (id bigint)").await;
    let names = ["free", "items", "nowhere"].map(|table| format!("{}.{table}", world.name));
    let declared = names.clone();
    let a = world.start_with(PertoBuilder::allow_unwatched, move |cache| cache.tables(declared)).await;
    assert_eq!(a.unwatched(), [&names[0][..], &names[2]]);
    assert!(
        a.troubles(TroubleKind::Unwatched).iter().all(|trouble| trouble.cache.as_deref() == Some("item"))
    );
}

/// By its own search path the loader may read either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_several_schemas_have_is_declared_with_its_schema() {
    let world = World::new().await;
    let (name, other) = (format!("t_{}", world.name), format!("{}_b", world.name));
    let (one, two) = (format!("{}.{name}", world.name), format!("{other}.{name}"));
    world.sql(&format!("create table {one} (id bigint)")).await;
    let said = said_of(&world, &name).await;
    assert!(said.contains("search path") && said.contains(&one), "found nowhere on it: {said}");
    world.sql(&format!("create schema {other}; create table {two} (id bigint)")).await;
    let said = said_of(&world, &name).await;
    world.sql(&format!("drop schema {other} cascade")).await;
    assert!(said.contains("several tables") && said.contains(&one) && said.contains(&two), "{said}");
}

/// As somebody does who makes a table anew each night: what was told of once is told of again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_mended_and_lost_again_is_told_from_one_that_was_lost_all_the_time() {
    let world = World::new().await;
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    let log = postgres::log(&world.database, &world.name).unwrap();
    let tables = [format!("{}.items", world.name)];
    let mark = async || log.unwatched("item", &tables, &[]).await.unwrap().pop().unwrap().mark;
    let drop_one = format!("drop trigger \"{}:item:delete\" on items", world.name);
    world.sql(&drop_one).await;
    let lost = mark().await;
    assert_eq!(mark().await, lost, "nothing has happened");
    let watch = world.watch("items", "item");
    postgres::watch(&mut connection, &watch).await.unwrap();
    assert_eq!(log.unwatched("item", &tables, &[]).await.unwrap(), []);
    world.sql(&drop_one).await;
    let again = mark().await;
    assert_ne!(again, lost);
    world.sql(&format!("alter table items disable trigger \"{}:item:insert\"", world.name)).await;
    assert_ne!(mark().await, again);
}

/// An instance that brings its own schema up, declared beside the cache.
fn bringing(world: &World, database: &str, log: &str) -> (Perto, Cache<i64, i64>) {
    let perto =
        Perto::builder(&world.name).postgres(database).redis(&world.redis).schema(log).build().unwrap();
    let sql = format!("select id, v from {}.own where id = any($1)", world.name);
    let cache = perto.cache("own").watch(&format!("{}.own", world.name), "id");
    let own = cache.loader(postgres::by_key(&world.pool, &sql)).unwrap();
    (perto, own)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_instances_that_start_at_once_bring_the_schema_up_by_themselves() {
    let world = World::new().await;
    let log = format!("up_{}", std::process::id());
    world.sql("create table own (id bigint primary key, v bigint); insert into own values (1, 1)").await;
    let mut starting = JoinSet::new();
    for _ in 0..10 {
        let (perto, own) = bringing(&world, &world.database, &log);
        starting.spawn(async move {
            perto.migrate().await.unwrap();
            perto.start().await.unwrap();
            let state = perto.ready().await.unwrap();
            assert!(matches!(state, State::Coherent | State::Isolated), "{state}");
            (perto, own)
        });
    }
    let instances = starting.join_all().await;
    for (_, own) in &instances {
        own.get(&1).await.unwrap();
    }
    // Once more does nothing: what is cached stays.
    instances[0].0.migrate().await.unwrap();
    let polls: Vec<u64> = instances.iter().map(|(perto, _)| perto.stats().polls).collect();
    eventually("what it did is polled", async || {
        instances.iter().zip(&polls).all(|((perto, _), before)| perto.stats().polls >= before + 2)
    })
    .await;
    for (_, own) in &instances {
        assert_eq!(own.get(&1).await.unwrap().tier, Tier::Local);
    }
    world.sql("update own set v = 2").await;
    for (_, own) in &instances {
        eventually("the write is seen", async || own.get(&1).await.unwrap().value() == Some(&2)).await;
    }
    for (perto, _) in instances {
        perto.shutdown().await;
        assert!(matches!(perto.ready().await, Err(Error::Closed)));
    }
    world.sql(&format!("drop schema {log} cascade")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_that_may_not_create_is_told_what_the_owner_runs_and_the_grants_that_it_needs_after() {
    let world = World::new().await;
    let (role, log) = (format!("{}_role", world.name), format!("gr_{}", std::process::id()));
    let schema = &world.name;
    world
        .sql(&format!(
            "create table own (id bigint primary key, v bigint); insert into own values (1, 1); \
             create role {role} login password 'of the test'; grant usage on schema {schema} to {role}; \
             grant select on own to {role}",
        ))
        .await;
    let as_role = world.database.parse::<PgConnectOptions>().unwrap().username(&role).password("of the test");
    let (perto, own) = bringing(&world, as_role.to_url_lossy().as_str(), &log);
    let said_of = |done: Result<(), StartError>| match done {
        Err(StartError::Log(LogError::Schema(said))) => said,
        done => panic!("{done:?}"),
    };
    let said = said_of(perto.migrate().await);
    let commands = format!(
        "`perto migrate --schema {log}`, `perto watch {schema}.own --cache own --key id --schema {log}`"
    );
    assert!(said.contains(&format!("As the tables' owner, run: {commands}.")), "{said}");
    let (_, grants) = said.split_once("Then this role needs: ").unwrap_or_else(|| panic!("{said}"));

    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    postgres::migrate(&mut connection, &log).await.unwrap();
    let watch = postgres::Watch { schema: log.clone(), ..world.watch("own", "own") };
    postgres::watch(&mut connection, &watch).await.unwrap();
    assert_eq!(said_of(perto.start().await), format!("this role may not use the log. It needs: {grants}"));
    let still = format!("the log and its triggers are there. This role still needs: {grants}");
    assert_eq!(said_of(perto.migrate().await), still);
    // The commands are still to be run where a trigger is missing.
    let delete = format!("trigger \"{log}:own:delete\"");
    world.sql(&format!("alter table own disable {delete}")).await;
    assert_eq!(said_of(perto.migrate().await), said);
    world.sql(&format!("alter table own enable always {delete}")).await;
    // Each of them: also those without which the instance would start.
    let all_but_last = grants.trim_end_matches(';').rsplit_once(';').unwrap().0;
    world.sql(all_but_last).await;
    let last = format!("grant select on {log}.switch to {role};");
    assert_eq!(said_of(perto.start().await), format!("this role may not use the log. It needs: {last}"));
    world.sql(&last).await;
    perto.migrate().await.unwrap();
    perto.start().await.unwrap();
    assert_eq!(own.get(&1).await.unwrap().value(), Some(&1));
    world.sql("update own set v = 2").await;
    eventually("the write is seen", async || own.get(&1).await.unwrap().value() == Some(&2)).await;
    perto.shutdown().await;
    world.sql(&format!("drop schema {log} cascade; drop owned by {role}; drop role {role}")).await;
}
