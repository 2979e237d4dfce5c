//! The triggers themselves: what they must not let anybody do, and what they must not let a key depend on.

use perto::postgres::{self, Watch};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::world::{World, coherent};

/// Attached to a table of one's own, with a cast of one's own, it would run that cast as the log's owner.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_else_may_attach_a_trigger_function_to_a_table_of_their_own() {
    let world = World::new().await;
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    let function: String = sqlx::query_scalar(
        "select format('%I.%I', n.nspname, p.proname) from pg_trigger t join pg_proc p on p.oid = t.tgfoid \
         join pg_namespace n on n.oid = p.pronamespace \
         where t.tgrelid = ($1 || '.items')::regclass and t.tgname like '%:insert'",
    )
    .bind(&world.name)
    .fetch_one(&world.pool)
    .await
    .unwrap();
    let role = format!("{}_stranger", world.name);
    let own = format!("{}_own", world.name);
    let sql = format!(
        "create role {role}; create schema {own} authorization {role}; set role {role}; \
         create table {own}.bait (id bigint)"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    let attach = format!(
        "create trigger t after insert on {own}.bait referencing new table as new_rows for each statement \
         execute function {function}()"
    );
    let attached = sqlx::raw_sql(AssertSqlSafe(attach)).execute(&mut connection).await;
    let clean_up = format!("reset role; drop schema {own} cascade; drop owned by {role}; drop role {role}");
    sqlx::raw_sql(AssertSqlSafe(clean_up)).execute(&mut connection).await.unwrap();
    // Roles are the whole cluster's: gone before anything can fail.
    let said = attached.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(said.contains("permission denied"), "{said:?}");
}

/// The same moment, written in two sessions: one text, or an update by hand would invalidate another key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keys_text_does_not_depend_on_the_session_that_writes() {
    let world = World::new().await;
    let (schema, mut connection) = (&world.name, PgConnection::connect(&world.database).await.unwrap());
    let table = format!("create table {schema}.slots (at timestamptz, f float8, b bytea)");
    sqlx::raw_sql(AssertSqlSafe(table)).execute(&mut connection).await.unwrap();
    let watch = Watch {
        schema: schema.clone(),
        table: format!("{schema}.slots"),
        cache: "slot".to_owned(),
        key: r"at || '/' || f || '/\n' || b".to_owned(),
        columns: Vec::new(),
    };
    postgres::watch(&mut connection, &watch).await.unwrap();
    let insert =
        format!("insert into {schema}.slots values ('2024-02-01 12:00:00+00', 0.1, decode('00ff', 'hex'))");
    let elsewhere = "set timezone = 'America/New_York'; set datestyle = 'SQL, DMY'; set extra_float_digits = -3; \
                     set bytea_output = 'escape'; set standard_conforming_strings = off; set escape_string_warning = off";
    let mut other = PgConnection::connect(&world.database).await.unwrap();
    sqlx::raw_sql(elsewhere).execute(&mut other).await.unwrap();
    for session in [&mut connection, &mut other] {
        sqlx::raw_sql(AssertSqlSafe(insert.as_str())).execute(session).await.unwrap();
    }
    let keys = format!("select distinct unnest(keys) from {schema}.invalidation where cache = 'slot'");
    let keys: Vec<String> = sqlx::query_scalar(AssertSqlSafe(keys)).fetch_all(&world.pool).await.unwrap();
    assert_eq!(keys, [r"2024-02-01 12:00:00+00/0.1/\n\x00ff"]);
}

/// What Postgres calls immutable may read settings all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keys_text_depends_on_no_setting_that_an_immutable_function_reads() {
    let world = World::new().await;
    let (schema, mut connection) = (&world.name, PgConnection::connect(&world.database).await.unwrap());
    world.sql("create table words (w text, list text)").await;
    let watch = Watch {
        schema: schema.clone(),
        table: format!("{schema}.words"),
        cache: "word".to_owned(),
        key: "format('%I', w) || '/' || quote_ident(w) || '/' || coalesce((list::text[])[1], 'none') || '/' || \
              case when nullif(w, w) = null then 'null' else 'unknown' end"
            .to_owned(),
        columns: Vec::new(),
    };
    postgres::watch(&mut connection, &watch).await.unwrap();
    let elsewhere = "set quote_all_identifiers = on; set array_nulls = off; set transform_null_equals = on; set xmlbinary = hex";
    let mut other = PgConnection::connect(&world.database).await.unwrap();
    sqlx::raw_sql(elsewhere).execute(&mut other).await.unwrap();
    let insert = format!("insert into {schema}.words values ('word', '{{NULL}}')");
    for session in [&mut connection, &mut other] {
        sqlx::raw_sql(AssertSqlSafe(insert.as_str())).execute(session).await.unwrap();
    }
    let keys = format!("select distinct unnest(keys) from {schema}.invalidation where cache = 'word'");
    let keys: Vec<String> = sqlx::query_scalar(AssertSqlSafe(keys)).fetch_all(&world.pool).await.unwrap();
    assert_eq!(keys, ["word/word/none/unknown"]);
}

/// It would be accepted, and then fail every write to the table.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_expression_that_the_function_could_not_run_is_refused() {
    let world = World::new().await;
    let schema = &world.name;
    let sql = format!(
        "create function {schema}.item_key(bigint) returns text immutable language sql as 'select $1::text'"
    );
    world.sql(&sql).await;
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("set search_path = {schema}")))
        .execute(&mut connection)
        .await
        .unwrap();
    let mut watch = Watch { key: "item_key(id)".to_owned(), ..world.watch("items", "item") };
    let error = postgres::rewatch(&mut connection, &watch).await.unwrap_err().to_string();
    assert!(error.starts_with("key: ") && error.contains("one row"), "{error}");
    watch.key = format!("{schema}.item_key(id)");
    postgres::rewatch(&mut connection, &watch).await.unwrap();
    world.sql("insert into items values (1, 1)").await;
    watch.cache = "Not a name!".to_owned();
    let error = postgres::watch(&mut connection, &watch).await.unwrap_err().to_string();
    assert!(error.starts_with("cache: "), "{error}");
}

/// What is recorded of a key is SQL that an admin may be told to run again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_more_than_one_expression_is_refused_and_nothing_of_it_runs() {
    let world = World::new().await;
    let (schema, mut connection) = (&world.name, PgConnection::connect(&world.database).await.unwrap());
    let evil = format!("create table {schema}.evil ()");
    for key in [
        format!("1)::text) from pg_class limit 0; commit; {evil}; begin; select ((1"),
        format!("1) from pg_class limit 0; commit; {evil}; begin; select (1"),
        // An expression, until it stands in the function's text.
        format!("'$perto$; commit; {evil}; begin; select $perto$'"),
        format!(r"'\''; commit; {evil}; begin; select '' \'"),
        "1), (2".to_owned(),
        "id)::text) from pg_class --".to_owned(),
        "id from pg_class --".to_owned(),
        "id --".to_owned(),
        // In the trigger's function the rows have another name.
        "items.id".to_owned(),
    ] {
        let watch = Watch { key: key.clone(), ..world.watch("items", "item") };
        let watched = postgres::rewatch(&mut connection, &watch).await;
        let ran: bool = sqlx::query_scalar("select to_regclass($1) is not null")
            .bind(format!("{schema}.evil"))
            .fetch_one(&world.pool)
            .await
            .unwrap();
        assert!(!ran, "{key}");
        // A text is an expression, whatever it says.
        if key.starts_with('\'') {
            let said = watched.err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(said, "", "{key}");
            world.sql("delete from items; insert into items values (1, 1)").await;
        } else {
            let error = watched.unwrap_err().to_string();
            assert!(error.starts_with("key: ") && error.contains("one row"), "{key}: {error}");
        }
    }
    let keys = "select distinct unnest(keys) from invalidation where keys is not null";
    let mut keys: Vec<String> = sqlx::query_scalar(keys).fetch_all(&world.pool).await.unwrap();
    keys.sort();
    assert_eq!(keys.len(), 2, "{keys:?}");
    assert!(keys.iter().all(|key| key.contains("create table")), "{keys:?}");
}

/// As a dump of a cluster with higher numbers brings them: they come with every poll, until they are trimmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_the_log_from_the_future_is_not_believed_and_is_trimmed() {
    let world = World::new().await;
    let a = world.start().await;
    coherent([&a]).await;
    world.put(1, 1).await;
    a.polled().await;
    world
        .sql("insert into invalidation (xid, cache, keys) values ('900000000000', 'item', '{1}'), ('900000000001', 'item', null)")
        .await;
    a.polled().await;
    a.fresh(1).await;
    let loads = a.loads();
    a.polled().await;
    a.fresh(1).await;
    assert_eq!(a.loads(), loads, "still cached");
    let log = postgres::log(&world.database, &world.name).unwrap();
    log.trim(std::time::Duration::from_hours(1)).await.unwrap();
    assert_eq!(world.count("invalidation where xid >= '900000000000'").await, 0);
}
