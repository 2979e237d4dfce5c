//! Keys whose text no setting changes: their triggers run under no settings, so what the writing session has set must not matter,
//! and neither may what becomes of the column.

use perto::Tier;
use perto::postgres::{self, Fault, FunctionChange, Watch};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::world::{World, coherent};

async fn connection(world: &World) -> PgConnection {
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    run(&mut connection, &format!("set search_path = {}", world.name)).await;
    connection
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Watches a table of this world, for a cache of its name, by a key.
async fn keyed(world: &World, table: &str, key: &str, columns: &[&str]) {
    let columns = columns.iter().map(|column| (*column).to_owned()).collect();
    let watch = Watch { key: key.to_owned(), columns, ..world.watch(table, table) };
    postgres::rewatch(&mut connection(world).await, &watch).await.unwrap();
    world.sql(&format!("delete from invalidation where cache = '{table}'")).await;
}

/// Whether the trigger of a table runs under settings.
async fn is_pinned(world: &World, table: &str) -> bool {
    let sql = "select proconfig is not null from pg_trigger t join pg_proc p on p.oid = t.tgfoid \
               where t.tgrelid = to_regclass($1) and t.tgname like '%:update'";
    let table = format!("{}.{table}", world.name);
    sqlx::query_scalar(sql).bind(table).fetch_one(&world.pool).await.unwrap()
}

/// What the log has of a cache: a row's keys in order, `*` for the whole cache. Empties the log of it.
async fn logged(world: &World, cache: &str) -> Vec<String> {
    let sql = "with gone as (delete from invalidation where cache = $1 returning xid, keys) \
        select coalesce((select string_agg(k, ',' order by k collate \"C\") from unnest(keys) k), '*') from gone order by xid";
    sqlx::query_scalar(sql).bind(cache).fetch_all(&world.pool).await.unwrap()
}

async fn faults(world: &World, cache: &str) -> Vec<String> {
    let sql = "select fault from invalidation where cache = $1 and fault is not null order by xid";
    sqlx::query_scalar(sql).bind(cache).fetch_all(&world.pool).await.unwrap()
}

/// All that a session may set and that some type's text or some expression depends on.
const ELSEWHERE: &str = "set datestyle = 'SQL, DMY'; set intervalstyle = 'sql_standard'; set extra_float_digits = -3; \
    set bytea_output = 'escape'; set timezone = 'America/New_York'; set standard_conforming_strings = off; \
    set escape_string_warning = off; set quote_all_identifiers = on; set array_nulls = off; set transform_null_equals = on; \
    set xmlbinary = hex; set search_path = pg_temp; set enable_nestloop = off; set enable_sort = off; set enable_hashagg = off; \
    set plpgsql.extra_errors = 'all'; set plpgsql.variable_conflict = 'error'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_a_fixed_text_is_logged_alike_whatever_the_session_has_set() {
    let world = World::new().await;
    let mut other = connection(&world).await;
    run(&mut other, ELSEWHERE).await;
    for (at, (kind, one, two)) in [
        ("int2", "7", "8"),
        ("int4", "-7", "8"),
        ("int8", "7", "9000000000"),
        ("numeric", "1.50", "2"),
        ("bool", "true", "false"),
        ("text", "a'b", "A'B"),
        ("varchar(9)", "NULL", ""),
        ("uuid", "00000000-0000-4000-8000-000000000001", "00000000-0000-4000-8000-000000000002"),
    ]
    .into_iter()
    .enumerate()
    {
        let table = format!("t{at}");
        let of = format!("{}.{table}", world.name);
        world.sql(&format!("create table {table} (id {kind}, v int)")).await;
        keyed(&world, &table, if at % 2 == 0 { "id" } else { "\"id\"" }, &[]).await;
        assert!(!is_pinned(&world, &table).await, "{kind}");
        let (one, two) = (one.replace('\'', "''"), two.replace('\'', "''"));
        for sql in [
            format!("insert into {of} values ('{one}', 1)"),
            format!("update {of} set v = 2"),
            format!("update {of} set id = '{two}'"),
            format!("update {of} set v = 3 where false"),
            format!("insert into {of} values ('{one}', 1), ('{one}', 2)"),
            format!("update {of} set v = 4"),
            format!("delete from {of} where id = '{two}'"),
            format!("delete from {of}"),
            format!("delete from {of}"),
            format!("insert into {of} values (null, 1)"),
            format!("update {of} set id = '{one}'"),
            format!("update {of} set id = null"),
            format!("truncate {of}"),
        ] {
            run(&mut other, &sql).await;
        }
        let (one, two) = (one.replace("''", "'"), two.replace("''", "'"));
        let mut both = [one.as_str(), two.as_str()];
        both.sort_unstable();
        let both = both.join(",");
        let expected = [&one, &one, &both, &one, &both, &two, &one, &one, &one, "*"].map(String::from);
        assert_eq!(logged(&world, &table).await, expected, "{kind}");
    }
}

/// The partition that rows move to may keep some out: they are gone, and only among the old ones. And texts may be longer together than
/// any list of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_row_that_an_update_takes_away_is_named_though_no_new_one_takes_its_place() {
    let world = World::new().await;
    world
        .sql(
            "create table p (id int, r text) partition by list (r); \
             create table pa partition of p for values in ('a'); create table pb partition of p for values in ('b'); \
             create function keep_out() returns trigger language plpgsql as \
               $$ begin if new.id = 1 then return null; end if; return new; end $$; \
             create trigger keep_out before insert on pb for each row execute function keep_out()",
        )
        .await;
    keyed(&world, "p", "id", &[]).await;
    assert!(!is_pinned(&world, "p").await);
    world.sql("insert into p values (2, 'a'), (1, 'a')").await;
    world.sql("update p set r = 'b' where id in (1, 2)").await;
    assert_eq!(logged(&world, "p").await, ["1,2", "1,2"]);
    world.sql("create table big (id text)").await;
    keyed(&world, "big", "id", &[]).await;
    world.sql("insert into big select repeat('x', 2000) from generate_series(1, 2)").await;
    world.sql("insert into big values (repeat('x', 2000))").await;
    assert_eq!(logged(&world, "big").await, ["*", "*"]);
}

/// Whoever writes may put a schema of his own before all others, and what it has of the names that the function uses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_writers_search_path_leads_to_runs_as_the_functions_owner() {
    let world = World::new().await;
    let (schema, role) = (&world.name, format!("{}_thief", world.name));
    let evil = format!("{schema}_evil");
    world
        .sql(
            "create table one (id bigint, v int); create table two (id bigint, v int); create table three (id text, v int)",
        )
        .await;
    keyed(&world, "one", "id", &[]).await;
    keyed(&world, "two", "id", &["v"]).await;
    keyed(&world, "three", "id", &[]).await;
    let mut thief = connection(&world).await;
    let mut sql = format!(
        "create role {role}; create schema {evil} authorization {role}; grant usage on schema {schema} to {role}; \
         grant all on one, two, three to {role}; set role {role}; set search_path = {evil}, pg_catalog; \
         create table {evil}.seen (who name); grant all on {evil}.seen to public; \
         create table {evil}.new_rows (id text, v int); create table {evil}.old_rows (like {evil}.new_rows); \
         create table {evil}.invalidation (xid text, cache text, keys text, fault text); \
         create domain {evil}.text as pg_catalog.text; create domain {evil}.int4 as pg_catalog.int4; \
         create domain {evil}.bool as pg_catalog.bool; create domain {evil}.regtype as pg_catalog.regtype; \
         create collation {evil}.\"C\" from \"POSIX\"; "
    );
    let spy = |signature: &str, returns: &str, value: &str| {
        format!(
            "create function {evil}.{signature} returns {returns} language plpgsql as \
             $$begin insert into {evil}.seen values (current_user); return {value}; end$$; "
        )
    };
    for (signature, returns, value) in [
        ("pg_current_xact_id()", "pg_catalog.xid8", "pg_catalog.pg_current_xact_id()"),
        ("pg_typeof(bigint)", "pg_catalog.regtype", "'bigint'::pg_catalog.regtype"),
        ("pg_typeof(pg_catalog.text)", "pg_catalog.regtype", "'text'::pg_catalog.regtype"),
        ("cardinality(pg_catalog.text[])", "pg_catalog.int4", "1"),
        ("octet_length(pg_catalog.text)", "pg_catalog.int4", "1"),
        (
            "format(pg_catalog.text, pg_catalog.name, pg_catalog.name, pg_catalog.int4)",
            "pg_catalog.text",
            "$1",
        ),
        (
            "format(pg_catalog.text, pg_catalog.name, pg_catalog.name, pg_catalog.text, pg_catalog.text)",
            "pg_catalog.text",
            "$1",
        ),
        ("\"left\"(pg_catalog.text, pg_catalog.int4)", "pg_catalog.text", "$1"),
        ("eq(pg_catalog.text, pg_catalog.text)", "pg_catalog.bool", "true"),
        ("eq(pg_catalog.regtype, pg_catalog.regtype)", "pg_catalog.bool", "true"),
        ("eq(pg_catalog.int4, pg_catalog.int4)", "pg_catalog.bool", "true"),
        ("eq(pg_catalog.text[], pg_catalog.text[])", "pg_catalog.bool", "true"),
        ("pg_column_size(pg_catalog.int4)", "pg_catalog.int4", "1"),
        ("cat(pg_catalog.text[], pg_catalog.text[])", "pg_catalog.text[]", "$1"),
        ("most(pg_catalog.int4, pg_catalog.int4)", "pg_catalog.int4", "$1"),
        ("both(pg_catalog.bool, pg_catalog.bool)", "pg_catalog.bool", "$1"),
        ("added(pg_catalog.text[], pg_catalog.text)", "pg_catalog.text[]", "$1"),
        ("summed(pg_catalog.int8, pg_catalog.int4)", "pg_catalog.int8", "$1"),
        ("differs(pg_catalog.int8, pg_catalog.int4)", "pg_catalog.bool", "false"),
    ] {
        sql += &spy(signature, returns, value);
    }
    for (name, left, right, function) in [
        ("=", "text", "text", "eq"),
        ("~", "text", "text", "eq"),
        ("=", "regtype", "regtype", "eq"),
        ("=", "int4", "int4", "eq"),
        ("=", "text[]", "text[]", "eq"),
        (">", "int4", "int4", "eq"),
        ("<=", "int4", "int4", "eq"),
        ("||", "text[]", "text[]", "cat"),
        ("<>", "int8", "int4", "differs"),
    ] {
        sql += &format!(
            "create operator {evil}.{name} (leftarg = pg_catalog.{left}, rightarg = pg_catalog.{right}, function = {evil}.{function}); "
        );
    }
    sql += &format!(
        "create aggregate {evil}.array_agg(pg_catalog.text) (sfunc = {evil}.added, stype = pg_catalog.text[]); \
         create aggregate {evil}.max(pg_catalog.int4) (sfunc = {evil}.most, stype = pg_catalog.int4); \
         create aggregate {evil}.bool_and(pg_catalog.bool) (sfunc = {evil}.both, stype = pg_catalog.bool); \
         create aggregate {evil}.sum(pg_catalog.int4) (sfunc = {evil}.summed, stype = pg_catalog.int8); "
    );
    run(&mut thief, &sql).await;
    let long = "x".repeat(2_000);
    let mut failed = Vec::new();
    for first in [evil.as_str(), "pg_temp"] {
        for sql in [
            format!("set search_path = {first}, {evil}, pg_catalog"),
            format!("insert into {schema}.one values (1, 1)"),
            format!("update {schema}.one set v = 2"),
            format!("update {schema}.one set id = 2"),
            format!("insert into {schema}.one select n, n from generate_series(3, 5) n"),
            format!("update {schema}.one set v = 3"),
            format!("delete from {schema}.one"),
            format!("insert into {schema}.two values (1, 1), (2, 2)"),
            format!("update {schema}.two set v = 3 where id = 1"),
            format!("delete from {schema}.two"),
            format!("insert into {schema}.three values ('{long}', 1)"),
            format!("truncate {schema}.one, {schema}.two, {schema}.three"),
            "create temp table new_rows (id text, v int); create temp table old_rows (id text, v int); \
             create temp table invalidation (xid text, cache text, keys text, fault text)"
                .to_owned(),
        ] {
            if let Err(error) = sqlx::raw_sql(AssertSqlSafe(sql.as_str())).execute(&mut thief).await
                && !sql.starts_with("create temp")
            {
                failed.push(format!("{sql:.60}: {error}"));
            }
        }
    }
    // What did not run by the writer's own statements, nor on an altered column.
    world.sql("alter table one alter id type timestamptz using now()").await;
    run(&mut thief, &format!("insert into {schema}.one values (pg_catalog.now(), 1)")).await;
    let seen: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(format!("select distinct who::text from {evil}.seen")))
            .fetch_all(&world.pool)
            .await
            .unwrap();
    let clean_up = format!("reset role; drop schema {evil} cascade; drop owned by {role}; drop role {role}");
    run(&mut thief, &clean_up).await;
    assert_eq!(failed, [""; 0]);
    assert!(seen.iter().all(|who| *who == role), "{seen:?}");
    let once = ["1", "1", "1,2", "3,4,5", "2,3,4,5", "2,3,4,5", "*"];
    let expected: Vec<&str> = once.into_iter().chain(once).chain(["*"]).collect();
    assert_eq!(logged(&world, "one").await, expected);
    let once = ["1,2", "1", "1,2", "*"];
    assert_eq!(logged(&world, "two").await, [once, once].concat());
    assert_eq!(logged(&world, "three").await, ["*"; 4]);
}

/// Of the columns that count, each kind of change of one row and of several, and what is too long to be compared at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_is_logged_where_a_column_that_counts_has_changed_and_nowhere_else() {
    let world = World::new().await;
    world
        .sql(
            "create table people (id bigint primary key, name text, age int, seen int); \
             insert into people values (1, 'a', 1, 0), (2, 'b', null, 0), (3, repeat('x', 200000), 3, 0); \
             alter table people alter name set storage external",
        )
        .await;
    keyed(&world, "people", "id", &["name", "age"]).await;
    assert!(!is_pinned(&world, "people").await);
    let mut other = connection(&world).await;
    run(&mut other, ELSEWHERE).await;
    let of = format!("{}.people", world.name);
    for (sql, expected) in [
        ("set seen = 1 where id = 1", vec![]),
        ("set seen = 1 where id = 2", vec![]),
        ("set seen = 1", vec![]),
        ("set seen = 1 where false", vec![]),
        ("set name = 'A' where id = 1", vec!["1"]),
        ("set name = 'A' where id = 1", vec![]),
        ("set name = null where id = 1", vec!["1"]),
        ("set name = '' where id = 1", vec!["1"]),
        ("set age = 5 where id = 2", vec!["2"]),
        ("set age = null where id = 2", vec!["2"]),
        ("set age = null where id = 2", vec![]),
        ("set id = 4 where id = 1", vec!["1,4"]),
        ("set id = 1, seen = 2 where id = 4", vec!["1,4"]),
        // One of them stays what it was; the other one is long.
        ("set name = case id when 3 then name || 'y' else name end where id in (1, 3)", vec!["3"]),
        ("set name = case id when 1 then 'z' else name end where id in (1, 3)", vec!["1"]),
        ("set name = name || 'z' where id = 3", vec!["3"]),
        ("set seen = 3 where id = 3", vec![]),
        // They change places.
        ("set name = case id when 1 then 'b' else 'z' end where id in (1, 2)", vec!["1,2"]),
    ] {
        run(&mut other, &format!("update {of} {sql}")).await;
        assert_eq!(logged(&world, "people").await, expected, "{sql}");
    }
    // The key counts, though it is none of them.
    keyed(&world, "people", "name", &["age"]).await;
    run(&mut other, &format!("update {of} set name = 'c' where id = 2")).await;
    run(&mut other, &format!("update {of} set seen = 4 where id = 2")).await;
    assert_eq!(logged(&world, "people").await, ["c,z"]);
    keyed(&world, "people", "id", &["name", "age"]).await;
    // A column that counts has another type now, or is gone: nobody can tell what has changed.
    world.sql("alter table people alter age type text using age || ''").await;
    run(&mut other, &format!("update {of} set seen = 4 where id = 1")).await;
    assert_eq!(logged(&world, "people").await, [""; 0]);
    run(&mut other, &format!("update {of} set age = '9' where id = 1")).await;
    assert_eq!(logged(&world, "people").await, ["1"]);
    for gone in ["alter age type date using null", "drop column age"] {
        world.sql(&format!("alter table people {gone}")).await;
        run(&mut other, &format!("update {of} set seen = 5 where id = 1")).await;
        assert_eq!(logged(&world, "people").await, ["*"], "{gone}");
    }
}

/// All of a row's columns in one text may be more than Postgres can have in one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_whose_columns_fill_a_gigabyte_is_written_all_the_same() {
    let world = World::new().await;
    world.sql("create table huge (id bigint primary key, a text, b text, seen int)").await;
    keyed(&world, "huge", "id", &["a", "b"]).await;
    // Quotes are doubled in a row's text.
    world.sql("insert into huge values (1, repeat('\"', 600000000), '', 0)").await;
    world.sql("update huge set b = 'b' where id = 1").await;
    world.sql("update huge set seen = 1 where id = 1").await;
    // It can't be compared: nobody knows what has changed.
    assert_eq!(logged(&world, "huge").await, ["1", "*", "*"]);
}

/// Its variables and what it joins have names that columns may have too, and each may be renamed or dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_is_called_as_something_in_the_function_is_watched_as_any() {
    let world = World::new().await;
    let mut other = connection(&world).await;
    for name in [
        "found",
        "tg_op",
        "perto_row",
        "perto_rows",
        "perto_keys",
        "perto_found",
        "new",
        "k",
        "n",
        "one",
        "missing",
        "old_rows",
        "new_rows",
        "begin",
    ] {
        for (key, columns) in [(name, vec![]), (name, vec!["v"]), ("id", vec![name]), ("id", vec![name, "v"])]
        {
            for gone in [format!("rename \"{name}\" to other"), format!("drop \"{name}\"")] {
                world
                    .sql(&format!(
                        "create table t (id bigint, \"{name}\" bigint, v int, w int); insert into t values (1, 1, 1, 1)"
                    ))
                    .await;
                keyed(&world, "t", &format!("\"{key}\""), &columns).await;
                // Its plans are those of this session.
                for sql in [
                    format!("insert into t (id, \"{name}\", v) values (2, 2, 2)"),
                    "update t set v = v + 1 where id = 1".to_owned(),
                    format!("update t set \"{name}\" = 3 where id = 1"),
                    "delete from t where id = 2".to_owned(),
                    "update t set w = w + 1".to_owned(),
                ] {
                    run(&mut other, &sql).await;
                }
                let told = logged(&world, "t").await;
                let counts = |column: &str| columns.is_empty() || columns.contains(&column);
                let moved = if key == name { "1,3" } else { "1" };
                let last = if key == name { "3" } else { "1" };
                let expected =
                    [("2", true), ("1", counts("v")), (moved, true), ("2", true), (last, columns.is_empty())];
                let expected: Vec<&str> =
                    expected.into_iter().filter_map(|(key, is)| is.then_some(key)).collect();
                assert_eq!(told, expected, "{name}: {key} {columns:?}");
                world.sql(&format!("alter table t {gone}")).await;
                run(&mut other, "update t set w = w + 1").await;
                assert_eq!(logged(&world, "t").await, ["*"], "{gone}: {key} {columns:?}");
                world.sql("drop table t").await;
            }
        }
    }
}

/// The trigger that was made for a number is the trigger of a time now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_gets_another_type_is_found_at_the_next_write_and_by_who_looks() {
    let world = World::new().await;
    world.sql("create table slots (id bigint, v int); insert into slots values (1, 1)").await;
    keyed(&world, "slots", "id", &[]).await;
    let mut other = connection(&world).await;
    // Its plans are those of the type that it was.
    run(&mut other, "update slots set v = 2").await;
    let slots = async || {
        let all = postgres::watched(&mut connection(&world).await, &world.name).await.unwrap();
        all.into_iter().find(|watched| watched.watch.cache == "slots").unwrap()
    };
    // From one to another of those that need no settings.
    world.sql("alter table slots alter id type text").await;
    run(&mut other, "update slots set v = 3").await;
    assert_eq!(slots().await.faults, []);
    assert_eq!(logged(&world, "slots").await, ["1", "1"]);
    world.sql("alter table slots alter id type timestamptz using '2024-02-01 12:00:00+00'").await;
    run(&mut other, "set timezone = 'America/New_York'; set datestyle = 'SQL, DMY'").await;
    for sql in [
        "update slots set v = 4",
        "insert into slots values ('2024-02-02', 5), (null, 5)",
        "insert into slots values (null, 5)",
        "delete from slots where v = 5",
        "update slots set v = 6 where false",
    ] {
        run(&mut other, sql).await;
    }
    let said = faults(&world, "slots").await;
    assert_eq!(logged(&world, "slots").await, ["*"; 4]);
    let expected = format!(
        "{}.slots: a column has another type than when this was watched: watch it again (42804)",
        world.name
    );
    assert_eq!(said, [expected.as_str(); 4]);
    let found = slots().await;
    let changed = |fault: &Fault| matches!(fault, Fault::Function { change: FunctionChange::Body, .. });
    assert!(found.faults.iter().any(changed), "{:?}", found.faults);
    postgres::watch(&mut connection(&world).await, &found.watch).await.unwrap();
    assert_eq!(slots().await.faults, []);
    assert!(is_pinned(&world, "slots").await);
    logged(&world, "slots").await;
    run(&mut other, "update slots set v = 7").await;
    assert_eq!(logged(&world, "slots").await, ["2024-02-01 12:00:00+00"]);
    // And back.
    world.sql("alter table slots alter id type bigint using 1").await;
    run(&mut other, "update slots set v = 8").await;
    assert_eq!(logged(&world, "slots").await, ["1"]);
    postgres::watch(&mut connection(&world).await, &found.watch).await.unwrap();
    assert!(!is_pinned(&world, "slots").await);
    // A type of somebody's own, whose cast would run as the function's owner.
    let schema = &world.name;
    world
        .sql(&format!(
            "create type {schema}.own as (n int); \
             create function {schema}.spied({schema}.own) returns text language plpgsql immutable as \
               'begin raise exception ''it runs''; end'; \
             create cast ({schema}.own as text) with function {schema}.spied({schema}.own); \
             alter table slots alter id type {schema}.own using row(1)::{schema}.own"
        ))
        .await;
    run(&mut other, "update slots set v = 9").await;
    assert!(faults(&world, "slots").await.iter().all(|fault| fault.contains("another type")));
    assert!(logged(&world, "slots").await.contains(&"*".to_owned()));
}

/// A text that a setting shortens would call alike what is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_column_whose_text_a_session_shortens_is_still_seen_to_change() {
    let world = World::new().await;
    world
        .sql(
            "create table rates (id bigint primary key, exact numeric, rough float8); \
             insert into rates values (1, 1, 1), (2, 1, 1)",
        )
        .await;
    let mut other = connection(&world).await;
    run(&mut other, "set extra_float_digits = -10").await;
    let nudged = |column: &str| format!("update rates set {column} = {column} + 0.00000001 where id = 1");
    keyed(&world, "rates", "id", &["rough"]).await;
    assert!(is_pinned(&world, "rates").await);
    run(&mut other, &nudged("rough")).await;
    assert_eq!(logged(&world, "rates").await, ["1"]);
    keyed(&world, "rates", "id", &["exact"]).await;
    assert!(!is_pinned(&world, "rates").await);
    run(&mut other, &nudged("exact")).await;
    run(&mut other, &nudged("rough")).await;
    assert_eq!(logged(&world, "rates").await, ["1"]);
    // From the other kind to this one, without being watched again.
    world.sql("alter table rates alter exact type float8").await;
    run(&mut other, &nudged("exact")).await;
    assert_eq!(logged(&world, "rates").await, ["*"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_needs_no_settings_only_where_it_is_a_column_and_no_word_of_the_grammar() {
    let world = World::new().await;
    world
        .sql(
            "create table odd (id bigint, \"user\" text, \"null\" text, \"Big\" text, \"a \"\"b\" text, \"int\" int, at timestamptz, \
               ids bigint[], ch char(3)); \
             create domain few as int; alter table odd add f few; \
             insert into odd values (1, 'u', 'n', 'B', 'ab', 2, '2024-01-01', '{1}', 'ch', 3)",
        )
        .await;
    for (key, pinned, text) in [
        ("id", false, "1"),
        (" id ", false, "1"),
        ("\"id\"", false, "1"),
        ("\"Big\"", false, "B"),
        ("\"a \"\"b\"", false, "ab"),
        ("\"user\"", false, "u"),
        ("\"null\"", false, "n"),
        ("\"int\"", false, "2"),
        ("ID", true, "1"),
        ("(id)", true, "1"),
        ("id + 1", true, "2"),
        ("'id'", true, "id"),
        ("ids", true, "{1}"),
        ("ch", true, "ch"),
        ("f", true, "3"),
    ] {
        keyed(&world, "odd", key, &[]).await;
        assert_eq!(is_pinned(&world, "odd").await, pinned, "{key}");
        world.sql("update odd set at = now()").await;
        assert_eq!(logged(&world, "odd").await, [text], "{key}");
    }
    let refused = world.keyed("odd", "null").await.expect_err("that is null, and no column");
    assert!(refused.contains("it is null whatever the row is"), "{refused}");
}

/// The longest key that is cached is named, a longer one is not, and a row is one row whether or not it came by an upsert.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_row_is_logged_by_its_key_where_that_is_possible() {
    let world = World::new().await;
    world.sql("create table notes (id text primary key, v int)").await;
    keyed(&world, "notes", "id", &[]).await;
    let (longest, longer) = ("é".repeat(512), "x".repeat(1_025));
    world.sql(&format!("insert into notes values ('{longest}', 1)")).await;
    world.sql("update notes set v = 2").await;
    assert_eq!(logged(&world, "notes").await, [longest.as_str(), longest.as_str()]);
    world.sql(&format!("update notes set id = '{longer}'")).await;
    assert_eq!(faults(&world, "notes").await.len(), 1);
    world.sql("update notes set id = 'a'").await;
    assert_eq!(faults(&world, "notes").await.len(), 2);
    assert_eq!(logged(&world, "notes").await, ["*", "*"]);
    let upsert =
        "insert into notes values ('a', 1), ('b', 1) on conflict (id) do update set v = excluded.v + 1";
    world.sql(upsert).await;
    let mut both = logged(&world, "notes").await;
    both.sort();
    assert_eq!(both, ["a", "b"]);
    world.sql("insert into notes values ('a', 1) on conflict do nothing").await;
    assert_eq!(logged(&world, "notes").await, [""; 0]);
    world.sql("insert into notes select 'n' || n, n from generate_series(1, 501) n").await;
    assert_eq!(logged(&world, "notes").await, ["*"]);
    world.sql("delete from notes").await;
    assert_eq!(logged(&world, "notes").await, ["*"]);
}

/// Nothing in the log's table refuses such a row any more, so readers must know what it says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidation_of_no_keys_keeps_what_is_cached_and_one_of_a_missing_key_clears() {
    let world = World::new().await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    world.put(1, 1).await;
    a.polled().await;
    b.polled().await;
    a.fresh(1).await;
    b.fresh(1).await;
    a.items.invalidate_many(&[]).await.unwrap();
    world.sql("insert into invalidation (cache, keys) values ('item', '{}')").await;
    a.polled().await;
    b.polled().await;
    for instance in [&a, &b] {
        assert_eq!(instance.fresh_from(1).await, (Some(1), Tier::Local));
    }
    // In a transaction that says what it has invalidated.
    let written: Result<_, sqlx::Error> = a
        .perto
        .write(&world.pool, async |tx| {
            sqlx::raw_sql("insert into invalidation (cache, keys) values ('item', '{}')").execute(tx).await
        })
        .await;
    assert!(written.unwrap().token.is_none(), "it has invalidated nothing");
    assert_eq!(a.fresh_from(1).await, (Some(1), Tier::Local));
    world.sql("insert into invalidation (cache, keys) values ('item', '{null}')").await;
    a.polled().await;
    b.polled().await;
    for instance in [&a, &b] {
        assert!(instance.items.get_if_cached(&1).is_none());
    }
}

/// Whoever writes a watched table may call it, with whatever text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_trace_is_not_kept_in_the_log() {
    let world = World::new().await;
    let long = "x".repeat(1_000_000);
    let schema = &world.name;
    for (trace, kept) in [(long.as_str(), 0), ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", 1)]
    {
        world
            .sql(&format!(
                "begin; insert into items values ({kept}, 1); select {schema}.pending('{trace}'); commit"
            ))
            .await;
        assert_eq!(world.count("invalidation where traceparent is not null").await, kept);
    }
}
