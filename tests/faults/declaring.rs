//! Making the log and watching tables, beside everybody who uses them: nobody waits for it, nothing is undone by doing it twice.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use perto::postgres::{self, Fault, Watch, Watched};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::engines::redis_url;
use crate::support::postgres::{PrivatePostgres, psql};
use crate::world::{World, coherent, pool, read_items};

async fn connected(world: &World) -> PgConnection {
    PgConnection::connect(&world.database).await.unwrap()
}

async fn watched(world: &World) -> Vec<Watched> {
    postgres::watched(&mut connected(world).await, &world.name).await.unwrap()
}

/// One that waits for a lock for no longer than this, which no busy machine makes longer.
async fn impatient(world: &World, limit: &str) -> PgConnection {
    let mut connection = connected(world).await;
    let sql = format!("set search_path = {}; set lock_timeout = '{limit}'", world.name);
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    connection
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_what_is_watched_so_does_nothing_and_waits_for_nobody() {
    let world = World::new().await;
    world.sql("create table parent (id bigint) partition by range (id); create table part partition of parent default").await;
    let watches = [world.watch("items", "item"), world.watch("parent", "parts")];
    let mut connection = connected(&world).await;
    postgres::watch(&mut connection, &watches[1]).await.unwrap();
    let rows = world.count("invalidation").await;
    let mut holding = world.pool.begin().await.unwrap();
    let lock = "lock table items, parent, invalidation, watched in access exclusive mode";
    let unread = sqlx::raw_sql("lock table items, parent in access exclusive mode");
    unread.execute(&mut *holding).await.unwrap();
    for watch in &watches {
        postgres::watch(&mut connection, watch).await.unwrap();
        postgres::rewatch(&mut connection, watch).await.unwrap();
        assert_eq!(postgres::watch_sql(&mut connection, watch, false).await.unwrap(), None);
    }
    postgres::migrate(&mut connection, &world.name).await.unwrap();
    assert_eq!(postgres::migrate_sql(&mut connection, &world.name).await.unwrap(), None);
    sqlx::raw_sql(lock).execute(&mut *holding).await.unwrap();
    postgres::migrate(&mut connection, &world.name).await.unwrap();
    holding.rollback().await.unwrap();
    assert_eq!(world.count("invalidation").await, rows, "nothing is cleared");
    let partition = watched(&world).await.iter().map(|watched| watched.tables.len()).collect::<Vec<_>>();
    assert_eq!(partition, [1, 2]);
    // What is not so is mended, and clears.
    world.sql(&format!("alter table part disable trigger \"{}:parts:delete\"", world.name)).await;
    postgres::watch(&mut connection, &watches[1]).await.unwrap();
    assert_eq!(world.count("invalidation").await, rows + 1);
    assert!(watched(&world).await.iter().all(|watched| watched.faults.is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_key_is_refused_unless_it_is_to_replace() {
    let world = World::new().await;
    let mut connection = connected(&world).await;
    let rows = world.count("invalidation").await;
    let other = Watch { key: "v || ':' || id".to_owned(), ..world.watch("items", "item") };
    let refused = postgres::watch(&mut connection, &other).await.unwrap_err().to_string();
    for says in ["\"id\"", "\"v || ':' || id\"", "--replace", "rewatch"] {
        assert!(refused.contains(says), "{refused}");
    }
    postgres::watch_sql(&mut connection, &other, false).await.unwrap_err();
    assert_eq!(world.count("invalidation").await, rows, "nothing is cleared");
    assert_eq!(watched(&world).await[0].watch.key, "id");
    postgres::rewatch(&mut connection, &other).await.unwrap();
    assert_eq!(watched(&world).await[0].watch.key, other.key);
    world.sql("insert into items values (1, 2)").await;
    assert_eq!(world.count("invalidation where keys = '{2:1}'").await, 1);
    let functions = format!(
        "pg_proc where pronamespace = '{}'::regnamespace and prorettype = 'trigger'::regtype",
        world.name
    );
    assert_eq!(world.count(&functions).await, 1, "the one before has gone");
    // Another cache of the same table has a key of its own.
    postgres::watch(&mut connection, &world.watch("items", "another")).await.unwrap();
}

/// How long that one reads: as long as an attempt to declare waits for its locks in all.
const LONG: Duration = Duration::from_secs(10);

/// A session keeps what it has found, and that it has found nothing: so do commands that look before they change anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_looked_before_sees_what_another_has_made_while_it_waited() {
    let world = World::new().await;
    let (schema, all_looked) = (format!("{}l", world.name), tokio::sync::Barrier::new(4));
    let four = (0..4).map(async |_| {
        let mut connection = connected(&world).await;
        assert_eq!(postgres::schema_version(&mut connection, &schema).await.unwrap(), None);
        assert!(postgres::migrate_sql(&mut connection, &schema).await.unwrap().is_some());
        all_looked.wait().await;
        postgres::migrate(&mut connection, &schema).await.unwrap();
        let watch = Watch { schema: schema.clone(), ..world.watch("items", "one") };
        postgres::watch_sql(&mut connection, &watch, false).await.unwrap();
        all_looked.wait().await;
        postgres::watch(&mut connection, &watch).await.unwrap();
    });
    futures_util::future::join_all(four).await;
    let all = postgres::watched(&mut connected(&world).await, &schema).await.unwrap();
    world.sql(&format!("drop schema {schema} cascade")).await;
    assert!(all.len() == 1 && all[0].faults.is_empty(), "{all:?}");
}

/// Ten instances that start at once, on a table that somebody has been reading for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_at_once_watch_a_new_schema_beside_an_open_reader_and_keep_no_reader_waiting() {
    let world = World::new().await;
    let schema = format!("{}n", world.name);
    let mut reading = world.pool.begin().await.unwrap();
    sqlx::raw_sql("select * from items").execute(&mut *reading).await.unwrap();
    let (began, done, reads) = (Instant::now(), AtomicBool::new(false), AtomicU64::new(0));
    let readers = async {
        // Behind a lock that waits for longer it would be refused.
        let mut reader = impatient(&world, "100ms").await;
        while !done.load(Ordering::Acquire) || began.elapsed() < LONG {
            sqlx::raw_sql("select * from items").execute(&mut reader).await.unwrap();
            reads.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
        }
    };
    let watching = async {
        let ten = (0..10).map(async |_| {
            let mut connection = connected(&world).await;
            postgres::migrate(&mut connection, &schema).await.unwrap();
            for cache in ["one", "two"] {
                let watch = Watch { schema: schema.clone(), ..world.watch("items", cache) };
                postgres::watch(&mut connection, &watch).await.unwrap();
            }
        });
        futures_util::future::join_all(ten).await;
        done.store(true, Ordering::Release);
        began.elapsed()
    };
    let ((), watched) = tokio::join!(readers, watching);
    assert!(watched < LONG, "all of them beside the open reader, and not behind it: {watched:?}");
    reading.rollback().await.unwrap();
    let rows = world.count(&format!("{schema}.invalidation")).await;
    let functions = world
        .count(&format!(
            "pg_proc where pronamespace = '{schema}'::regnamespace and prorettype = 'trigger'::regtype"
        ))
        .await;
    let all = postgres::watched(&mut connected(&world).await, &schema).await.unwrap();
    world.sql(&format!("drop schema {schema} cascade")).await;
    assert_eq!((rows, functions), (2, 2), "the first has done it, and cleared; none after");
    assert!(all.len() == 2 && all.iter().all(|watched| watched.faults.is_empty()), "{all:?}");
    assert!(reads.load(Ordering::Relaxed) > 10);
}

/// Replaced triggers too: other readers go on beside one that has the table open, and a writer that doesn't end holds up nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_does_not_end_is_waited_for_and_holds_up_nobody_else() {
    let world = World::new().await;
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    let mut open = world.pool.begin().await.unwrap();
    sqlx::raw_sql("insert into items values (-1, 1)").execute(&mut *open).await.unwrap();
    let done = AtomicBool::new(false);
    let others = async {
        let mut writer = impatient(&world, "1s").await;
        let mut reader = impatient(&world, if version < 140_000 { "1s" } else { "100ms" }).await;
        let (began, mut open, mut id) = (Instant::now(), Some(open), 0);
        while !done.load(Ordering::Acquire) {
            let write = format!("insert into items values ({id}, 1)");
            sqlx::raw_sql(AssertSqlSafe(write)).execute(&mut writer).await.unwrap();
            sqlx::raw_sql("select * from items").execute(&mut reader).await.unwrap();
            id += 1;
            // Held for some attempts.
            if began.elapsed() > Duration::from_secs(1)
                && let Some(open) = open.take()
            {
                open.commit().await.unwrap();
            }
            tokio::task::yield_now().await;
        }
        id
    };
    let declaring = async {
        let mut connection = connected(&world).await;
        let other = Watch { key: "id + 0".to_owned(), ..world.watch("items", "item") };
        postgres::rewatch(&mut connection, &other).await.unwrap();
        done.store(true, Ordering::Release);
    };
    let (written, ()) = tokio::join!(others, declaring);
    assert!(written > 2, "{written} writes went on meanwhile");
    assert_eq!(world.count("items").await, i64::from(written) + 1);
    assert_eq!(watched(&world).await[0].watch.key, "id + 0");
}

/// The SQL is for somebody else to run: it must come to the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sql_that_is_shown_does_what_would_have_been_done() {
    let world = World::new().await;
    let mut connection = connected(&world).await;
    let schema = format!("{}s", world.name);
    world.sql("create table \"Odd \"\"one\" (a text, b text); create table parent (id bigint) partition by range (id); create table part partition of parent default").await;
    let made = postgres::migrate_sql(&mut connection, &schema).await.unwrap().unwrap();
    assert_eq!(postgres::schema_version(&mut connection, &schema).await.unwrap(), None, "nothing was run");
    psql(&world.database, &made);
    assert_eq!(postgres::migrate_sql(&mut connection, &schema).await.unwrap(), None);
    let watches = [
        Watch {
            table: format!("{}.\"Odd \"\"one\"", world.name),
            key: r"a || '\:colon'':a' || b".to_owned(),
            ..world.watch("items", "odd")
        },
        world.watch("parent", "parts"),
        world.watch("items", "item-2"),
    ];
    for watch in watches.map(|watch| Watch { schema: schema.clone(), ..watch }) {
        let sql = postgres::watch_sql(&mut connection, &watch, false).await.unwrap().unwrap();
        let before = world.count(&format!("{schema}.watched where cache = '{}'", watch.cache)).await;
        assert_eq!(before, 0, "nothing was run");
        // In a session that reads backslashes otherwise.
        psql(
            &world.database,
            &format!("set standard_conforming_strings = off; set escape_string_warning = off;\n{sql}"),
        );
        assert_eq!(postgres::watch_sql(&mut connection, &watch, false).await.unwrap(), None, "{sql}");
    }
    world.sql("insert into \"Odd \"\"one\" values ('x', 'y')").await;
    let key: String = sqlx::query_scalar(AssertSqlSafe(format!(
        "select keys[1] from {schema}.invalidation where keys is not null"
    )))
    .fetch_one(&world.pool)
    .await
    .unwrap();
    let all = postgres::watched(&mut connection, &schema).await.unwrap();
    world.sql(&format!("drop schema {schema} cascade")).await;
    assert_eq!(key, r"x\:colon':ay");
    assert!(all.len() == 3 && all.iter().all(|watched| watched.faults.is_empty()), "{all:?}");
}

/// Elsewhere tables have other numbers, and these may be those of others here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_restored_into_another_cluster_is_whole_and_is_mended_by_watching_again() {
    let (here, elsewhere) = tokio::join!(PrivatePostgres::start(), PrivatePostgres::start());
    let world = World::on(&here.url("postgres"), &redis_url()).await;
    world.sql("create table others (id bigint); create table more (id bigint)").await;
    let mut connection = connected(&world).await;
    for table in ["others", "more"] {
        postgres::watch(&mut connection, &world.watch(table, "item")).await.unwrap();
    }
    world.sql("insert into items values (1, 1)").await;
    // Other numbers there.
    let mut there = PgConnection::connect(&elsewhere.url("postgres")).await.unwrap();
    sqlx::raw_sql("create table shift (id bigint); create table shift2 (id bigint)")
        .execute(&mut there)
        .await
        .unwrap();
    here.dump_to("postgres", &elsewhere, "postgres");
    let schema = &world.name;
    let functions = format!(
        "select count(*) from pg_proc where pronamespace = '{schema}'::regnamespace and prorettype = 'trigger'::regtype"
    );
    // What is recorded of each is the number of another one.
    let swap = format!(
        "update {schema}.watched w set relid = o.name::regclass from {schema}.watched o where w.name <> o.name \
         and w.name in ('{schema}.items', '{schema}.others') and o.name in ('{schema}.items', '{schema}.others')"
    );
    sqlx::raw_sql(AssertSqlSafe(swap)).execute(&mut there).await.unwrap();
    let all = postgres::watched(&mut there, schema).await.unwrap();
    let whole =
        |watched: &Watched| watched.faults.is_empty() && watched.tables == [watched.watch.table.as_str()];
    assert!(all.len() == 3 && all.iter().all(whole), "{all:?}");
    postgres::migrate(&mut there, &world.name).await.unwrap();
    for watched in &all {
        assert_eq!(postgres::watch_sql(&mut there, &watched.watch, false).await.unwrap(), None);
        // And by hand, after it was broken.
        let broken = format!("alter table {} disable trigger all", watched.watch.table);
        sqlx::raw_sql(AssertSqlSafe(broken)).execute(&mut there).await.unwrap();
        postgres::watch(&mut there, &watched.watch).await.unwrap();
    }
    // A number that is another's is no reason to forget a table.
    let number = format!(
        "update {schema}.watched set relid = '{schema}.more'::regclass where name = '{schema}.others'"
    );
    sqlx::raw_sql(AssertSqlSafe(number)).execute(&mut there).await.unwrap();
    postgres::unwatch(&mut there, &all[1].watch).await.unwrap();
    let left = postgres::watched(&mut there, schema).await.unwrap();
    assert_eq!(left, [all[0].clone(), all[2].clone()]);
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(functions)).fetch_one(&mut there).await.unwrap();
    assert_eq!(count, 1, "one for all that are watched alike, and none that nothing uses");
    let url = elsewhere.url("postgres");
    let loading = pool(&url, &world.name);
    let b = world.build_loading(
        |perto| perto.postgres(&url),
        |cache| cache,
        move |load| {
            let pool = loading.clone();
            async move { read_items(&pool, &load.keys).await }
        },
    );
    b.perto.start().await.unwrap();
    coherent([&b]).await;
    assert!(b.perto.health().troubles.is_empty());
    assert_eq!(b.fresh(1).await, Some(1));
    let update = format!("update {}.items set v = 2", world.name);
    sqlx::raw_sql(AssertSqlSafe(update)).execute(&mut there).await.unwrap();
    b.polled().await;
    assert_eq!(b.fresh(1).await, Some(2));
}

/// As the version before named and wrote them: by the table's number, which may be another's after a restore.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_of_the_version_before_are_replaced_and_dropped() {
    let world = World::new().await;
    let (schema, mut connection) = (&world.name, connected(&world).await);
    world.sql("create table others (id bigint)").await;
    let mut old = String::new();
    for (table, number) in [("items", "others"), ("others", "items")] {
        old += &format!(
            "create function {schema}.\"item:' || '{number}'::regclass::oid || '\"() returns trigger language plpgsql as \
             ''begin return null; end''; \
             create trigger \"{schema}:item:update\" after update on {table} for each statement \
             execute function {schema}.\"item:' || '{number}'::regclass::oid || '\"(); "
        );
    }
    postgres::unwatch(&mut connection, &world.watch("items", "item")).await.unwrap();
    world.sql(&format!("do $$ begin execute '{old}'; end $$")).await;
    world.sql(&format!("create function {schema}.\"gone:99999\"() returns trigger language plpgsql as 'begin return null; end'")).await;
    world
        .sql(&format!(
            "create function {schema}.mine() returns trigger language plpgsql as 'begin return null; end'"
        ))
        .await;
    for table in ["items", "others"] {
        postgres::watch(&mut connection, &world.watch(table, "item")).await.unwrap();
    }
    let all = watched(&world).await;
    assert!(all.len() == 2 && all.iter().all(|watched| watched.faults.is_empty()), "{all:?}");
    let functions =
        format!("pg_proc where pronamespace = '{schema}'::regnamespace and prorettype = 'trigger'::regtype");
    assert_eq!(world.count(&functions).await, 2, "the shared one, and somebody's own");
}

/// Triggers fire for tables only, and the log needs their rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_table_is_refused_by_name() {
    let world = World::new().await;
    world
        .sql("create view seen as select * from items; create materialized view kept as select * from items")
        .await;
    for name in ["seen", "kept"] {
        let refused = postgres::watch(&mut connected(&world).await, &world.watch(name, "seen"))
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains(name) && refused.contains("watch the tables that it reads"), "{refused}");
    }
    assert!(!watched(&world).await[0].faults.contains(&Fault::Gone));
}

/// Beside one that dumps the log: an upgrade that waits for it lets everybody else write, and does it in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_behind_an_open_reader_of_the_log_keeps_no_writer_waiting() {
    let world = World::new().await;
    // Something to do for it.
    world.sql("alter table invalidation set logged").await;
    let mut reading = world.pool.begin().await.unwrap();
    sqlx::raw_sql("select * from invalidation").execute(&mut *reading).await.unwrap();
    let done = AtomicBool::new(false);
    let writing = async {
        let mut writer = impatient(&world, "1s").await;
        let (began, mut reading, mut id) = (Instant::now(), Some(reading), 0_i64);
        while !done.load(Ordering::Acquire) {
            let write = format!("insert into items values ({id}, 1)");
            sqlx::raw_sql(AssertSqlSafe(write)).execute(&mut writer).await.unwrap();
            id += 1;
            if began.elapsed() > Duration::from_secs(1)
                && let Some(reading) = reading.take()
            {
                reading.rollback().await.unwrap();
            }
            tokio::task::yield_now().await;
        }
        id
    };
    let upgrading = async {
        postgres::migrate(&mut connected(&world).await, &world.name).await.unwrap();
        done.store(true, Ordering::Release);
    };
    let (written, ()) = tokio::join!(writing, upgrading);
    assert!(written > 2, "{written}");
    assert_eq!(
        world.count("pg_class where oid = 'invalidation'::regclass and relpersistence = 'u'").await,
        1
    );
}

/// Whoever may create in a schema of the path could have functions of their own run as whoever declares or looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_elses_functions_run_as_whoever_declares_or_looks() {
    let world = World::new().await;
    // The traps are in the first schema of its path.
    let mut connection = impatient(&world, "5s").await;
    let trap = |name: &str, arguments: &str| {
        format!(
            "create function {name}({arguments}) returns text language plpgsql as \
             'begin raise exception ''somebody else ran this''; end'; "
        )
    };
    let traps = [
        ("format", "text, name, name"),
        ("format", "text, text, text"),
        ("format", "text, text, name"),
        ("format", "text, regprocedure"),
        ("split_part", "name, text, int"),
    ];
    world.sql(&traps.map(|(name, arguments)| trap(name, arguments)).concat()).await;
    world.sql("create table others (id bigint)").await;
    let others = world.watch("others", "other");
    postgres::watch(&mut connection, &others).await.unwrap();
    let all = postgres::watched(&mut connection, &world.name).await.unwrap();
    assert!(all.len() == 2 && all.iter().all(|watched| watched.faults.is_empty()), "{all:?}");
    postgres::unwatch(&mut connection, &others).await.unwrap();
    postgres::migrate(&mut connection, &world.name).await.unwrap();
    // The caller's path is as it was.
    let others = Watch { table: "others".to_owned(), ..others };
    let mut tx = connection.begin().await.unwrap();
    postgres::watch(&mut tx, &others).await.unwrap();
    tx.rollback().await.unwrap();
}
