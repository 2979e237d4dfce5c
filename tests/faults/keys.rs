//! What a key is, and what becomes of one that can't be told: no write fails because of it.

use std::io::Write as _;
use std::time::Duration;

use perto::postgres::{self, Fault, Watch};
use perto::{Cache, Freshness, Load, Tier};
use sqlx::{Connection, PgConnection};

use crate::support::engines::redis_url;
use crate::support::postgres::PrivatePostgres;
use crate::world::{World, coherent};

impl World {
    async fn connection(&self) -> PgConnection {
        PgConnection::connect(&self.database).await.unwrap()
    }

    /// Watches a table of this world by a key.
    pub(crate) async fn keyed(&self, table: &str, key: &str) -> Result<(), String> {
        let watch = Watch { key: key.to_owned(), ..self.watch(table, table) };
        let watching = postgres::rewatch(&mut self.connection().await, &watch).await;
        watching.map(drop).map_err(|error| error.to_string())
    }

    /// What the log has of a table that is watched for a cache of its name: a row's keys in order, `*` for the whole cache.
    /// Empties the log.
    async fn logged(&self, table: &str) -> Vec<String> {
        let sql = "with gone as (delete from invalidation where cache = $1 returning xid, keys) \
            select coalesce((select string_agg(k, ',' order by k collate \"C\") from unnest(keys) k), '*') from gone order by xid";
        sqlx::query_scalar(sql).bind(table).fetch_all(&self.pool).await.unwrap()
    }

    async fn faults(&self, table: &str) -> Vec<String> {
        let sql = "select fault from invalidation where cache = $1 and fault is not null order by xid";
        sqlx::query_scalar(sql).bind(table).fetch_all(&self.pool).await.unwrap()
    }
}

/// As for a total of a user over the items of orders: the subquery reads what another transaction changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_no_function_of_one_row_is_refused_and_says_what_one_is() {
    let world = World::new().await;
    let schema = &world.name;
    world
        .sql(&format!(
            "create table lines (id bigint, order_id bigint, paid money, at timestamptz, label text); \
             create function {schema}.owner_of(bigint) returns text stable language sql as 'select $1::text'; \
             create function {schema}.moody(bigint) returns text language sql as 'select $1::text'; \
             create function {schema}.sound(bigint) returns text immutable language sql as 'select $1::text'"
        ))
        .await;
    for key in [
        &format!("(select v from {schema}.items o where o.id = order_id)"),
        &format!("exists (select from {schema}.items)"),
        &format!("array(select id from {schema}.items)"),
        &format!("{schema}.owner_of(id)"),
        &format!("{schema}.moody(id)"),
        "max(id)",
        "count(*)",
        "string_agg(label, ',')",
        "row_number() over ()",
        "lag(id) over (order by id)",
        "id, 1",
        "id, id",
        "id, order_id || ''",
        "random()",
        "id || gen_random_uuid()::text",
        "nextval('pg_catalog.x')",
        "now()",
        "current_date || id::text",
        "('now'::text)::timestamptz",
        "label::date",
        "(array[label]::date[])::text",
        "coalesce(at, 'today')",
        "current_user",
        "session_user",
        "current_setting('application_name')",
        "pg_backend_pid()",
        "age(at)",
        "to_char(at, 'TMMonth')",
        "paid",
        "paid::numeric",
        "id::regclass",
        "ctid",
        "xmin",
        "tableoid",
        "pg_catalog.pg_typeof(id)",
        "\"a row\"",
        "lines.id",
        "lines",
        "id; select 1",
        "*",
        "",
        "1 from pg_catalog.pg_class",
        "null",
        "null::bigint",
        "nullif('a', 'a')",
        "(array[]::text[])[1]",
        "unnest(array[]::text[])",
        "1 / 0",
    ] {
        let refused = world.keyed("lines", key).await.expect_err(key);
        assert!(refused.starts_with("key: "), "{key}: {refused}");
        for alternative in
            ["one row", "watch that one for the same cache", "unnest(member_ids)", "invalidate_in"]
        {
            assert!(refused.contains(alternative), "{key}: {refused}");
        }
    }
    let elsewhere = world.keyed("lines", "sound(id)").await.expect_err("in no schema");
    assert!(elsewhere.contains("write the schema of what is elsewhere"), "{elsewhere}");
    let operator = world.keyed("lines", "id ?|? id").await.expect_err("in no schema");
    assert!(operator.contains("write the schema of what is elsewhere"), "{operator}");
    let there = world.keyed("lines", &format!("{schema}.sound(label)")).await.expect_err("of another type");
    assert!(!there.contains("write the schema"), "{there}");
    for key in [
        "id",
        "'order:' || order_id",
        "lower(label) || ':' || id",
        "date_trunc('day', at)::date",
        "extract(year from at)",
        "at at time zone 'Europe/Berlin'",
        "concat_ws('/', id, order_id)",
        "coalesce(order_id, id)",
        "case when id > 0 then id end",
        "row(id, order_id)::text",
        "(id, order_id)",
        "md5(label)",
        "encode(convert_to(label, 'UTF8'), 'hex')",
        "nullif(label, '')",
        "id in (1, 2)",
        "greatest(id, order_id)",
        // All rows make up one value.
        "'all'",
        "coalesce(null, 'all')",
        "unnest(array['all', null])",
        &format!("{schema}.sound(id)"),
    ] {
        world.keyed("lines", key).await.unwrap_or_else(|refused| panic!("{key}: {refused}"));
        world.sql("insert into lines values (1, 2, 3, now(), 'a')").await;
        let logged = world.logged("lines").await;
        assert!(logged.len() >= 2 && logged[1] != "*", "{key}: {logged:?}");
    }
}

/// A group's members: a row stands for each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_set_returning_key_logs_each_of_its_values_old_and_new() {
    let world = World::new().await;
    world.sql("create table groups (id bigint, member_ids bigint[], tags jsonb, words text)").await;
    for (key, insert, update) in [
        ("unnest(member_ids)", "1,2", "1,2,3"),
        ("jsonb_array_elements_text(tags)", "a,b", "a,b"),
        ("regexp_split_to_table(words, ' ')", "x,y", "x,y"),
    ] {
        world.keyed("groups", key).await.unwrap();
        world.logged("groups").await;
        world.sql(r#"insert into groups values (9, '{1,2}', '["a","b"]', 'x y')"#).await;
        world.sql("update groups set member_ids = '{2,3}'").await;
        world.sql("delete from groups").await;
        let deleted = if key.starts_with("unnest") { "2,3" } else { insert };
        assert_eq!(world.logged("groups").await, [insert, update, deleted], "{key}");
        world.sql("insert into groups (id) values (9)").await;
        assert_eq!(world.logged("groups").await, [""; 0], "of nothing, nothing");
        world.sql("truncate groups").await;
        world.logged("groups").await;
    }
    world.keyed("groups", "unnest(member_ids)").await.unwrap();
    world.logged("groups").await;
    world.sql("insert into groups (member_ids) select array_agg(n) from generate_series(1, 501) n").await;
    assert_eq!(world.logged("groups").await, ["*"]);
}

/// What has two spellings that compare alike is two keys: a reader knows it by its text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_and_new_spelling_are_both_logged_though_they_compare_alike() {
    let world = World::new().await;
    world
        .sql(
            "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
             create extension if not exists citext schema public; \
             create table slugs (slug text collate ci, nick public.citext, n numeric, f float8)",
        )
        .await;
    for (key, change) in [
        ("slug", "slug = 'prod'"),
        ("nick", "nick = 'ada'"),
        ("n", "n = 1.0"),
        ("f", "f = '-0'"),
        ("slug || 'x'", "slug = 'prod'"),
    ] {
        world.sql("truncate slugs").await;
        world.keyed("slugs", key).await.unwrap();
        world.sql("insert into slugs values ('Prod', 'Ada', 1, 0)").await;
        world.logged("slugs").await;
        world.sql(&format!("update slugs set {change}")).await;
        let logged = world.logged("slugs").await.remove(0);
        assert_eq!(logged.split(',').count(), 2, "{key}: {logged}");
    }
    // Two collations in one key are none that `distinct` would know.
    world.sql("create table pair (a text collate \"C\", b text collate \"POSIX\")").await;
    world.keyed("pair", "a || ':' || b").await.unwrap();
    world.logged("pair").await;
    world.sql("insert into pair values ('x', 'y')").await;
    assert_eq!(world.logged("pair").await, ["x:y"]);
    // That this one needs a collation shows with the first row: no write fails of it.
    world.keyed("pair", "lower(a || b)").await.unwrap();
    world.logged("pair").await;
    world.sql("insert into pair values ('x', 'y')").await;
    let faults = world.faults("pair").await;
    assert!(faults.len() == 1 && faults[0].contains("collation"), "{faults:?}");
}

/// Whatever a type's text needs of the client, only the text is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_any_type_is_its_text() {
    let world = World::new().await;
    world
        .sql(
            "create extension if not exists citext schema public; create extension if not exists hstore schema public; \
             create type color as enum ('red', 'green'); create domain code as text check (value <> ''); \
             create type pair as (a int, b text); create domain sure as int not null; \
             create table typed (e color, c public.citext, p pair, h public.hstore, d code, a bigint[], ea color[], \
               u uuid, j jsonb, r int4range, i inet, n numeric(10, 2), s sure, ch char(4), bits bit(3), x xml)",
        )
        .await;
    let columns = [
        ("e", "red"),
        ("c", "Ada"),
        ("p", "(1,x)"),
        ("h", "\"a\"=>\"1\""),
        ("d", "k"),
        ("a", "{1,2}"),
        ("ea", "{red,green}"),
        ("u", "00000000-0000-4000-8000-000000000001"),
        ("j", "{\"a\": 1}"),
        ("r", "[1,5)"),
        ("i", "10.0.0.1/32"),
        ("n", "1.50"),
        ("s", "7"),
        ("ch", "ab"),
        ("bits", "101"),
        ("x", "<a/>"),
    ];
    for (column, text) in columns {
        world.keyed("typed", column).await.unwrap_or_else(|refused| panic!("{column}: {refused}"));
        world.logged("typed").await;
        let fill: Vec<String> = columns.iter().map(|(_, text)| format!("'{text}'")).collect();
        world.sql(&format!("insert into typed values ({})", fill.join(", "))).await;
        let sql = "select keys[1] from invalidation where cache = 'typed'";
        let logged: Option<String> = sqlx::query_scalar(sql).fetch_one(&world.pool).await.unwrap();
        assert_eq!(logged.as_deref(), Some(text), "{column}: {:?}", world.faults("typed").await);
    }
}

/// Names that the function itself uses, or that a function of its language has anyway.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_is_a_column_whatever_it_is_called() {
    let world = World::new().await;
    let names = [
        "ks",
        "k",
        "d",
        "r",
        "found",
        "new",
        "old",
        "tg_op",
        "tg_argv",
        "sqlstate",
        "sqlerrm",
        "perto_keys",
        "perto_fault",
        "perto_bytes",
        "new_rows",
        "old_rows",
        "cache",
        "keys",
        "xid",
        "fault",
        "a row",
        "Order",
        "select",
        "text",
    ];
    for (at, name) in names.iter().enumerate() {
        world.sql(&format!("create table c{at} (id bigint, \"{name}\" text)")).await;
        let key = format!("\"{name}\"");
        let table = format!("c{at}");
        world.keyed(&table, &key).await.unwrap_or_else(|refused| panic!("{name}: {refused}"));
        world.logged(&table).await;
        world
            .sql(&format!(
                "insert into {table} values (1, 'x'); update {table} set {key} = 'y'; delete from {table}"
            ))
            .await;
        assert_eq!(world.logged(&table).await, ["x", "x,y", "y"], "{name}");
    }
}

/// Each write is made, every instance is told, and the log says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_begins_to_fail_fails_no_write_and_clears_the_cache() {
    let world = World::new().await;
    let schema = &world.name;
    world
        .sql(&format!(
            "create function {schema}.fussy(bigint) returns text immutable language plpgsql as \
               'begin if $1 = 13 then raise exception ''no % here'', $1; end if; return $1; end'; \
             create function {schema}.sure(bigint) returns text immutable language plpgsql as \
               'begin assert $1 <> 13, ''not '' || $1; return $1; end'; \
             create table goods (id bigint, stock int, note text, label text)"
        ))
        .await;
    for (key, then, says) in [
        ("id", "alter table goods rename id to number", "goods: column \"id\" does not exist (42703)"),
        ("note", "alter table goods drop note", "goods: column \"note\" does not exist (42703)"),
        ("1 / (stock - 1)", "select", "goods: division by zero (22012)"),
        ("label::int", "select", "goods: its key failed (22P02)"),
        (&format!("{schema}.fussy(number)"), "select", "goods: its key failed (P0001)"),
        (&format!("{schema}.sure(number)"), "select", "goods: its key failed (P0004)"),
        (
            &format!("{schema}.sure(number)"),
            &format!("drop function {schema}.sure"),
            "does not exist (42883)",
        ),
        ("repeat(label, 1000)", "select", "goods: a key of 6000 bytes, and at most 1024 are possible"),
        ("label::varchar(2)::int4range", "select", "goods: its key failed (22P02)"),
    ] {
        world.keyed("goods", key).await.unwrap();
        world.sql(then).await;
        world.logged("goods").await;
        let number = world
            .count("information_schema.columns where table_name = 'goods' and column_name = 'number'")
            .await;
        let column = if number == 0 { "id" } else { "number" };
        for sql in [
            &format!("insert into goods ({column}, stock, label) values (13, 1, 'secret')"),
            "update goods set stock = 1",
            "delete from goods",
        ] {
            world.sql(sql).await;
        }
        let faults = world.faults("goods").await;
        assert_eq!(faults.len(), 3, "{key}: {faults:?}");
        assert!(
            faults.iter().all(|fault| fault.starts_with(schema.as_str()) && fault.contains(says)),
            "{key}: {faults:?}"
        );
        // The schema's name may have the number by chance.
        let said = |fault: &String| {
            ["secret", "13"].iter().any(|data| fault.replace(schema.as_str(), "").contains(data))
        };
        assert!(!faults.iter().any(said), "{key}: {faults:?}");
        assert_eq!(world.logged("goods").await, ["*", "*", "*"], "{key}");
    }
    // One row of many, and a write that fails by itself still does.
    world.keyed("goods", "1 / (stock - 1)").await.unwrap();
    world.logged("goods").await;
    world.sql("insert into goods (stock) select n from generate_series(0, 5) n").await;
    assert_eq!(world.logged("goods").await, ["*"]);
    let failing = sqlx::raw_sql("insert into goods (stock) values (1 / 0)").execute(&world.pool).await;
    assert!(failing.is_err());
}

/// What was cached is read anew, and so is what comes later, for as long as it lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_key_fails_reads_are_right_and_one_command_mends_it() {
    let world = World::new().await;
    let a = world.start().await;
    coherent([&a]).await;
    world.put(1, 1).await;
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(1));
    // A key beside the column that the loader reads by.
    world.sql("alter table items add number bigint; update items set number = id").await;
    let watch = Watch { key: "number".to_owned(), ..world.watch("items", "item") };
    let mut connection = world.connection().await;
    postgres::rewatch(&mut connection, &watch).await.unwrap();
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(1));
    world.sql("alter table items rename number to nr").await;
    for v in 2..5 {
        world.sql(&format!("update items set v = {v}")).await;
        a.polled().await;
        assert_eq!(a.fresh(1).await, Some(v));
    }
    let troubles = a.perto.health().troubles;
    let told = troubles.iter().find(|trouble| trouble.kind == perto::TroubleKind::KeyFails).unwrap();
    assert_eq!(told.table, Some(format!("{}.items", world.name)));
    assert!(
        told.detail.contains("column \"number\" does not exist") && told.detail.contains("--replace"),
        "{told:?}"
    );
    let log = postgres::log(&world.database, &world.name).unwrap();
    let rows = log.poll(None, &["item"], Duration::from_secs(10)).await.unwrap().rows.unwrap();
    let fault = rows.iter().find_map(|row| row.fault.clone()).unwrap_or_default();
    assert_eq!(fault, format!("{}.items: column \"number\" does not exist (42703)", world.name));
    let found = postgres::watched(&mut connection, &world.name).await.unwrap().remove(0).faults;
    let error = "column \"number\" does not exist".to_owned();
    assert_eq!(found, [Fault::Key { table: format!("{}.items", world.name), error }]);
    // The same again can't mend it.
    let refused = postgres::watch(&mut connection, &watch).await.unwrap_err().to_string();
    assert!(refused.contains("number"), "{refused}");
    let mended = Watch { key: "nr".to_owned(), ..watch };
    postgres::rewatch(&mut connection, &mended).await.unwrap();
    assert_eq!(postgres::watched(&mut connection, &world.name).await.unwrap()[0].faults, []);
    world.sql("update items set v = 9").await;
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(9));
    assert_eq!(world.count("invalidation where keys = '{1}' and fault is null").await, 3);
}

/// The trigger's spelling is not the reader's: nothing in the program can know what an expression makes of a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_expression_that_lowers_or_trims_a_text_still_evicts_what_is_asked_for_as_it_stands() {
    let world = World::new().await;
    world.sql("create table slugs (slug text primary key, v bigint not null)").await;
    world.keyed("slugs", "lower(btrim(slug))").await.unwrap();
    let slugs = ["Prod-61", "PROD-62", " prod-63 ", "Größe"];
    for slug in slugs {
        world.sql(&format!("insert into slugs values ('{slug}', 1)")).await;
    }
    let mut members = Vec::new();
    for _ in 0..2 {
        let instance = world.build(|perto| perto, |cache| cache);
        let pool = world.pool.clone();
        let load = move |load: Load<String>| {
            let pool = pool.clone();
            async move {
                let sql = "select slug, v from slugs where slug = any($1)";
                let rows = postgres::query_as::<(String, i64)>(sql).bind(load.keys).fetch(&pool).await?;
                Ok::<_, sqlx::Error>(rows.by_key(|row| row))
            }
        };
        let cache = instance.perto.cache("slugs").tables([format!("{}.slugs", world.name)]);
        let cache: Cache<String, i64> = cache.loader(load).unwrap();
        instance.perto.start().await.unwrap();
        members.push((instance, cache));
    }
    coherent([&members[0].0, &members[1].0]).await;
    for v in 2..5 {
        world.sql(&format!("update slugs set v = {v}")).await;
        for (instance, cache) in &members {
            instance.polled().await;
            for slug in slugs.map(str::to_owned) {
                let read = cache.get(&slug).await.unwrap();
                assert_eq!((read.value(), read.freshness), (Some(&v), Freshness::Fresh), "{slug}");
                assert_eq!(cache.get(&slug).await.unwrap().tier, Tier::Local, "{slug}");
            }
        }
    }
}

/// Two transactions that the key of one table could not tell of: an item is added, and its order goes to another user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_over_a_join_is_watched_on_each_of_its_tables() {
    let world = World::new().await;
    world
        .sql(
            "create table orders (id bigint primary key, user_id bigint not null); \
             create table order_items (id bigint primary key, order_id bigint not null, user_id bigint not null, price bigint not null); \
             insert into orders values (10, 1), (20, 2); \
             insert into order_items values (1, 10, 1, 1000), (2, 20, 2, 598)",
        )
        .await;
    let mut connection = world.connection().await;
    for table in ["orders", "order_items"] {
        let watch = Watch { key: "user_id".to_owned(), ..world.watch(table, "item") };
        postgres::watch(&mut connection, &watch).await.unwrap();
    }
    let pool = world.pool.clone();
    // The total of a user, over both tables; an item follows its order by a cascading key, or by a trigger of one's own.
    let a = world.build_loading(
        |perto| perto,
        |cache| cache,
        move |load| {
            let pool = pool.clone();
            async move {
                let sql = "select o.user_id, sum(i.price)::bigint from orders o join order_items i on i.order_id = o.id \
                           where o.user_id = any($1) group by 1";
                let rows = postgres::query_as::<(i64, i64)>(sql).bind(load.keys).fetch(&pool).await?;
                Ok(rows.by_key(|row| row))
            }
        },
    );
    a.perto.start().await.unwrap();
    coherent([&a]).await;
    assert_eq!((a.fresh(1).await, a.fresh(2).await), (Some(1_000), Some(598)));
    let mut adding = world.pool.begin().await.unwrap();
    sqlx::raw_sql("insert into order_items values (3, 20, 2, 100000)").execute(&mut *adding).await.unwrap();
    world.sql("update orders set user_id = 1 where id = 20; update order_items set user_id = 1 where order_id = 20").await;
    a.polled().await;
    // The reader caches both totals before the first transaction ends.
    assert_eq!((a.fresh(1).await, a.fresh(2).await), (Some(1_598), None));
    sqlx::raw_sql(
        "update order_items set user_id = (select user_id from orders where id = order_id) where id = 3",
    )
    .execute(&mut *adding)
    .await
    .unwrap();
    adding.commit().await.unwrap();
    a.polled().await;
    assert_eq!((a.fresh(1).await, a.fresh(2).await), (Some(101_598), None));
}

/// Postgres 18 computes these when they are read, and can't in a trigger's rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_a_generated_column_works_or_is_refused_and_never_fails_a_write() {
    let postgres = PrivatePostgres::start().await;
    let world = World::on(&postgres.url("postgres"), &redis_url()).await;
    world.sql("create table parts (id bigint, stored bigint generated always as (id * 2) stored)").await;
    world.keyed("parts", "stored").await.unwrap();
    world.logged("parts").await;
    world.sql("insert into parts values (4); update parts set id = 5").await;
    assert_eq!(world.logged("parts").await, ["8", "10,8"]);
    let version: i32 = sqlx::query_scalar("select current_setting('server_version_num')::int")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    if version < 180_000 {
        drop(writeln!(
            std::io::stderr(),
            "no virtual columns in version {version}: tried with the newest programs only"
        ));
        return;
    }
    world.sql("alter table parts add virtual bigint generated always as (id * 3)").await;
    // Beside the key it is in nobody's way.
    world.sql("insert into parts values (6)").await;
    assert_eq!(world.logged("parts").await, ["12"]);
    if let Err(refused) = world.keyed("parts", "virtual").await {
        assert!(refused.contains("virtual"), "{refused}");
    }
    world.logged("parts").await;
    world.sql("insert into parts values (7); update parts set id = 8; delete from parts").await;
    assert_eq!(world.logged("parts").await.len(), 3);
}

/// In its moment, and again a minute later: what is dropped and made again is whole in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn triggers_that_are_dropped_and_made_again_leave_nothing_old_behind() {
    let world = World::new().await;
    let a = world.start().await;
    coherent([&a]).await;
    let (mut connection, watch) = (world.connection().await, world.watch("items", "item"));
    for v in 0..6 {
        world.put(1, 10 * v).await;
        a.polled().await;
        assert_eq!(a.fresh(1).await, Some(10 * v));
        for event in ["insert", "update", "delete", "truncate"] {
            world.sql(&format!("drop trigger \"{}:item:{event}\" on items", world.name)).await;
        }
        world.sql(&format!("update items set v = {}", 10 * v + 1)).await;
        postgres::watch(&mut connection, &watch).await.unwrap();
        a.polled().await;
        assert_eq!(a.fresh(1).await, Some(10 * v + 1), "in round {v}");
    }
    let log = postgres::log(&world.database, &world.name).unwrap();
    log.trim(Duration::ZERO).await.unwrap();
    let functions = format!(
        "pg_proc where pronamespace = '{}'::regnamespace and prorettype = 'trigger'::regtype",
        world.name
    );
    assert_eq!(world.count(&functions).await, 1);
}
