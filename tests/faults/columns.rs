//! Tables that are watched for some of their columns.

use perto::postgres::{self, Watch, rewatch, watch};
use perto::{LogError, Tier};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::support::wait::eventually;
use crate::world::{Instance, World, coherent};

const INVALIDATIONS: &str = "invalidation where cache = 'person'";

/// A table of people, of whom the cache wants two columns.
async fn people(world: &World, columns: &[&str]) -> Watch {
    world
        .sql(
            "create table people (id bigint, name text, note json, score numeric, seen timestamptz); \
             insert into people select id, 'Ana', '{\"a\": 1}', 1.0, now() from generate_series(1, 3) id",
        )
        .await;
    let watching = Watch {
        columns: columns.iter().map(|column| (*column).to_owned()).collect(),
        ..world.watch("people", "person")
    };
    watch(&mut connection(world).await, &watching).await.unwrap();
    world.sql("delete from invalidation").await;
    watching
}

async fn connection(world: &World) -> PgConnection {
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    let path = format!("set search_path = {}", world.name);
    sqlx::raw_sql(AssertSqlSafe(path)).execute(&mut connection).await.unwrap();
    connection
}

async fn logged(world: &World, sql: &str) -> Vec<Option<Vec<String>>> {
    world.sql("delete from invalidation").await;
    world.sql(sql).await;
    let sql = format!(
        "select case when keys is not null then array(select unnest(keys) order by 1) end from {INVALIDATIONS}"
    );
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&world.pool).await.unwrap()
}

fn keys(keys: &[&str]) -> Vec<Option<Vec<String>>> {
    vec![Some(keys.iter().map(|key| (*key).to_owned()).collect())]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_of_other_columns_invalidates_nothing_and_all_else_does() {
    let world = World::new().await;
    people(&world, &["name", "note", "score"]).await;
    let none: Vec<Option<Vec<String>>> = Vec::new();
    for (sql, expected) in [
        ("update people set seen = now()", none.clone()),
        ("update people set name = name, score = score", none.clone()),
        ("update people set name = 'Ana' where id = 1", none.clone()),
        ("update people set name = 'Bia', seen = now() where id = 1", keys(&["1"])),
        ("update people set name = null where id = 1", keys(&["1"])),
        ("update people set name = '' where id = 1", keys(&["1"])),
        // No equality, and an equality that readers can tell apart.
        ("update people set note = '{\"a\":1}' where id = 2", keys(&["2"])),
        ("update people set score = 1.00 where id = 2", keys(&["2"])),
        ("update people set id = 9 where id = 3", keys(&["3", "9"])),
        // What was one's is the other's: each key has another value.
        ("update people set id = 10 - id, name = 'Ana' || id where id in (1, 9)", keys(&["1", "9"])),
        ("insert into people (id) values (20)", keys(&["20"])),
        ("delete from people where id = 20", keys(&["20"])),
        ("truncate people", vec![None]),
    ] {
        assert_eq!(logged(&world, sql).await, expected, "{sql}");
    }
}

/// Values of a key that is not the row's own: each is a list of rows, and who is in it is told by the primary key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_change_places_between_keys_or_within_one_invalidate_without_being_named() {
    let world = World::new().await;
    world
        .sql(
            "create table seats (\"Seat No\" bigint primary key, user_id bigint, place int, status text); \
             insert into seats values (1, 1, 1, 'ok'), (2, 2, 1, 'ok'), (3, 2, 2, 'ok')",
        )
        .await;
    let watching = Watch {
        key: "user_id".to_owned(),
        columns: ["status", "place"].map(str::to_owned).to_vec(),
        ..world.watch("seats", "person")
    };
    let mut connection = connection(&world).await;
    watch(&mut connection, &watching).await.unwrap();
    let swapped = "update seats set user_id = 3 - user_id where \"Seat No\" in (1, 2)";
    assert_eq!(logged(&world, swapped).await, keys(&["1", "2"]), "they have changed owners");
    world.sql("update seats set user_id = 2").await;
    let moved = "update seats set place = 3 - place where \"Seat No\" in (2, 3)";
    assert_eq!(logged(&world, moved).await, keys(&["2"]), "they have changed places in one list");
    assert_eq!(logged(&world, "update seats set status = status, place = place").await, []);
    let known = postgres::watched(&mut connection, &world.name).await.unwrap();
    let seats = known.iter().find(|watched| watched.watch.cache == "person").unwrap();
    assert_eq!(
        (&seats.watch.columns[..], seats.faults.len()),
        (&["Seat No", "place", "status"].map(str::to_owned)[..], 0)
    );
    watch(&mut connection, &watching).await.unwrap();
}

/// A cast to text may lose what readers see: blanks of an unbounded `bpchar`, or whatever somebody wrote a cast to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_cast_to_text_would_lose_is_a_change() {
    let world = World::new().await;
    let schema = &world.name;
    world
        .sql(&format!(
            "create type colour as enum ('red', 'dark red'); \
             create function {schema}.vague(colour) returns text language sql immutable as $$select 'red'$$; \
             create cast (colour as text) with function {schema}.vague(colour); \
             create table paints (id bigint primary key, code bpchar, tint colour); \
             insert into paints values (1, 'a', 'red')"
        ))
        .await;
    let columns = ["code", "tint"].map(str::to_owned).to_vec();
    let watching = Watch { columns, ..world.watch("paints", "person") };
    watch(&mut connection(&world).await, &watching).await.unwrap();
    assert_eq!(logged(&world, "update paints set code = 'a '").await, keys(&["1"]));
    assert_eq!(logged(&world, "update paints set tint = 'dark red'").await, keys(&["1"]));
    assert_eq!(logged(&world, "update paints set tint = 'dark red', code = 'a '").await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_updates_count_the_rows_that_they_change() {
    let world = World::new().await;
    people(&world, &["name"]).await;
    world.sql("insert into people (id, name) select id, 'many' from generate_series(100, 2000) id").await;
    assert_eq!(logged(&world, "update people set seen = now(), name = 'many'  where id >= 103").await, []);
    let few = logged(
        &world,
        "update people set name = case when id < 105 then 'few' else name end where id >= 100",
    )
    .await;
    assert_eq!(few, keys(&["100", "101", "102", "103", "104"]));
    assert_eq!(logged(&world, "update people set name = 'all' where id >= 100").await, vec![None]);
}

/// Reads beside a column that is written all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_whose_heartbeat_is_written_all_the_time_stays_in_l1() {
    let world = World::new().await;
    world.sql("alter table items add column seen timestamptz").await;
    let watching = Watch { columns: vec!["v".to_owned()], ..world.watch("items", "item") };
    rewatch(&mut connection(&world).await, &watching).await.unwrap();
    world.put(1, 1).await;
    let a = world.start().await;
    coherent([&a]).await;
    assert_eq!(a.fresh(1).await, Some(1));
    world.sql("delete from invalidation").await;
    for _ in 0..200 {
        world.sql("update items set seen = clock_timestamp() where id = 1").await;
        assert_eq!(a.fresh_from(1).await, (Some(1), Tier::Local));
    }
    a.polled().await;
    assert_eq!(a.fresh_from(1).await, (Some(1), Tier::Local));
    assert_eq!(world.count("invalidation").await, 0);
    world.sql("update items set v = 2 where id = 1").await;
    becomes(&a, 2).await;
}

async fn becomes(instance: &Instance, v: i64) {
    eventually("the write is seen", async || instance.fresh(1).await == Some(v)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_are_none_are_refused_with_those_that_there_are() {
    let world = World::new().await;
    let good = people(&world, &["name"]).await;
    let mut connection = connection(&world).await;
    for (columns, says) in [
        (vec!["nome"], "is no column of"),
        (vec!["name", "name"], "is named twice"),
        (vec!["ctid"], "it has id, name, note, score, seen"),
        (vec!["name); drop table people; --"], "is no column of"),
    ] {
        let columns = columns.into_iter().map(str::to_owned).collect();
        let other = Watch { columns, cache: "other".to_owned(), ..good.clone() };
        let refused = watch(&mut connection, &other).await.unwrap_err();
        let said = refused.to_string();
        assert!(matches!(refused, LogError::Schema(_)) && said.contains(says), "{said}");
    }
}

/// Other columns are another watch: said, and done only if that is meant. What is gone is found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_watched_remembers_its_columns_and_finds_those_that_are_gone() {
    let world = World::new().await;
    let by_name = people(&world, &["name"]).await;
    let mut connection = connection(&world).await;
    let columns = async |connection: &mut PgConnection| {
        let all = postgres::watched(connection, &world.name).await.unwrap();
        let people = all.into_iter().find(|watched| watched.watch.cache == "person").unwrap();
        (people.watch.columns.join(","), people.faults.len())
    };
    assert_eq!(columns(&mut connection).await, ("name".to_owned(), 0));
    watch(&mut connection, &by_name).await.unwrap();
    assert_eq!(world.count("invalidation").await, 0, "the same again does nothing");
    let by_all = Watch { columns: Vec::new(), ..by_name.clone() };
    let refused = watch(&mut connection, &by_all).await.unwrap_err().to_string();
    assert!(refused.contains("the columns name") && refused.contains("--replace"), "{refused}");
    rewatch(&mut connection, &by_all).await.unwrap();
    assert_eq!(columns(&mut connection).await, (String::new(), 0));
    rewatch(&mut connection, &by_name).await.unwrap();
    world.sql("alter table people rename name to called").await;
    assert_eq!(columns(&mut connection).await, ("name".to_owned(), 1));
    // Writes go on, and each clears the cache.
    assert_eq!(logged(&world, "update people set called = 'Caio' where id = 1").await, vec![None]);
}
