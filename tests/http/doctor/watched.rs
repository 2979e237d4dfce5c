//! What the doctor says of what is watched: triggers, functions, keys, and what programs declare.

use std::io::Write as _;

use super::*;
use crate::support::servers::Folder;

#[tokio::test(flavor = "multi_thread")]
async fn triggers_that_are_missing_disabled_or_not_always_on_are_told_of_by_table_and_event() {
    let database = migrated();
    let trigger = |event: &str| format!("\"perto:company:{event}\"");
    sql(
        &database.url,
        &format!(
            "drop trigger {} on companies; drop trigger {} on companies",
            trigger("insert"),
            trigger("truncate")
        ),
    )
    .await;
    sql(&database.url, &format!("alter table companies disable trigger {}", trigger("update"))).await;
    sql(&database.url, &format!("alter table companies enable trigger {}", trigger("delete"))).await;
    let said = doctor(&database.url, "", &[]).await;
    let mend = "perto-chat watch public.companies --cache company --key id";
    said.tells("triggers", "wrong", "public.companies has no trigger for insert, truncate", mend);
    said.tells("triggers", "wrong", "public.companies has its trigger disabled for update", mend);
    said.tells("triggers", "wrong", "not `enable always` for delete", mend);
    // As it says, so it is mended.
    succeed(perto(&database.url, "").args(mend.split(' ').skip(1)));
    let said = doctor(&database.url, "", &[]).await;
    assert!(said.well, "{:#?}", said.worst());
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_came_later_and_tables_that_went_are_told_of() {
    let database = migrated();
    sql(&database.url, "create table orders (id bigint, shop text) partition by range (id); create table low partition of orders for values from (0) to (9)").await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let orders = Watch {
        schema: "perto".into(),
        table: "orders".into(),
        cache: "order".into(),
        key: "shop || ':' || id".into(),
        columns: Vec::new(),
    };
    watch(&mut connection, &orders).await.unwrap();
    doctor(&database.url, "", &[]).await.tells("watched tables", "ok", "with a partition", "");
    sql(&database.url, "create table high partition of orders for values from (9) to (99)").await;
    let mend = r"perto-chat watch public.orders --cache order --key 'shop || '\'':'\'' || id'";
    doctor(&database.url, "", &[]).await.tells(
        "partitions",
        "wrong",
        "public.high came after public.orders",
        mend,
    );
    sql(&database.url, "drop table orders").await;
    doctor(&database.url, "", &[]).await.tells(
        "watched tables",
        "warn",
        "public.orders (cache or topic order) does not exist any more",
        "perto-chat watch public.orders --cache order --remove",
    );
    sql(&database.url, "create table orders (id bigint, shop text)").await;
    doctor(&database.url, "", &[]).await.tells(
        "watched tables",
        "wrong",
        "is not the table that was watched",
        mend,
    );
    sql(&database.url, "drop table orders").await;
    succeed(perto(&database.url, "").args(["watch", "public.orders", "--cache", "order", "--remove"]));
    assert!(doctor(&database.url, "", &[]).await.well);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_the_service_reads_and_nobody_watches_is_told_of() {
    let database = migrated();
    for (table, cache) in [
        ("chats", "message"),
        ("messages", "message"),
        ("companies", "company"),
        ("users", "user"),
        ("contacts", "contact"),
        ("contacts", "contact_by_phone"),
        ("contacts", "contacts_of_company"),
        ("chats", "inbox"),
        ("users", "overview"),
        ("contacts", "overview"),
        ("chats", "overview"),
        ("tool_results", "tool_result"),
        ("api_keys", "api_key"),
    ] {
        succeed(perto(&database.url, "").args(["watch", table, "--cache", cache, "--remove"]));
    }
    let said = doctor(&database.url, "", &[]).await;
    said.tells(
        "service",
        "wrong",
        "cache or topic company reads public.companies, which nobody watches for it",
        "perto-chat watch public.companies --cache company --key id",
    );
    said.tells("watched tables", "warn", "none", "perto-chat watch TABLE");
    sql(&database.url, "delete from perto.watched").await;
    succeed(perto(&database.url, "").args(["watch", "companies", "--cache", "company"]));
    sql(&database.url, "delete from perto.watched").await;
    doctor(&database.url, "", &[]).await.tells(
        "watched tables",
        "warn",
        "before there was a record",
        "perto-chat watch public.companies",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn trigger_functions_that_were_changed_are_told_of() {
    let (_server, url) = migrated_alone().await;
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let function: String =
        sqlx::query_scalar("select oid::regprocedure::text from pg_proc where proname like 'company:%'")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    sql(
        &url,
        &format!(
            "alter function {function} security invoker; grant execute on function {function} to public"
        ),
    )
    .await;
    let said = doctor(&url, "", &[]).await;
    said.tells("functions", "wrong", "not `security definer`", "perto-chat watch");
    said.tells(
        "functions",
        "wrong",
        "may be attached by anybody",
        &format!("revoke all on function {function} from public"),
    );
    let body = format!(
        "create or replace function {function} returns trigger language plpgsql as 'begin return null; end'"
    );
    sql(&url, &body).await;
    doctor(&url, "", &[]).await.tells("functions", "wrong", "is not the one", "perto-chat watch");
    sql(
        &url,
        &format!(
            "create role poor; grant create on schema perto to poor; alter function {function} owner to poor"
        ),
    )
    .await;
    let said = doctor(&url, "", &[]).await;
    said.tells("functions", "wrong", "every write to the table fails", "grant insert on perto.invalidation");
}

/// Writes go on meanwhile, and each clears the cache: nobody notices but by its price.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_be_told_any_more_is_told_of_with_the_command_that_replaces_it() {
    let database = Database::new();
    succeed(perto(&database.url, "").args(["migrate", "--log-only"]));
    sql(&database.url, "create table shops (id bigint, code text)").await;
    succeed(perto(&database.url, "").args(["watch", "shops", "--cache", "shop", "--key", "code"]));
    let of_keys = async || {
        let said = doctor(&database.url, "", &[]).await;
        said.worst().iter().filter(|(check, ..)| check == "keys").count()
    };
    assert_eq!(of_keys().await, 0);
    sql(&database.url, "alter table shops rename code to sku; insert into shops values (1, 'a')").await;
    let said = doctor(&database.url, "", &[]).await;
    let mend = "perto-chat watch public.shops --cache shop --key EXPR --replace";
    said.tells(
        "keys",
        "wrong",
        "the key of public.shops for cache or topic shop can't be told any more",
        mend,
    );
    said.tells("keys", "wrong", "column \"code\" does not exist", mend);
    run(&database.url, &mend.replace("EXPR", "sku")).await;
    assert_eq!(of_keys().await, 0);
    let said = doctor(&database.url, "", &[]).await;
    said.tells("watched tables", "ok", "public.shops (cache or topic shop), by sku", "");
}

/// What is recorded there is what the doctor tells an admin to run.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_else_may_write_what_is_watched_is_told_of() {
    let (_server, url) = migrated_alone().await;
    doctor(&url, "", &[]).await.tells("record", "ok", "nobody but its owner", "");
    sql(
        &url,
        "create role poor; grant all on all tables in schema perto to poor; grant insert on perto.watched to public",
    )
    .await;
    let mend = "revoke insert, update, delete, truncate on perto.watched from poor, public;";
    doctor(&url, "", &[]).await.tells("record", "wrong", "by poor, public", mend);
    sql(&url, mend).await;
    let said = doctor(&url, "", &[]).await;
    said.tells("record", "ok", "nobody but its owner", "");
    assert!(said.well, "{:#?}", said.worst());
}

/// It has tables that are called like those of the service, and they are its own affair.
#[tokio::test(flavor = "multi_thread")]
async fn a_shop_hears_nothing_of_the_chat_service() {
    let database = Database::new();
    succeed(perto(&database.url, "").args(["migrate", "--log-only"]));
    sql(&database.url, "create table users (id bigint); create table messages (id bigint); create table companies (id bigint)")
        .await;
    succeed(perto(&database.url, "").args(["watch", "users", "--cache", "shopper"]));
    let said = doctor(&database.url, "", &[]).await;
    assert!(said.checks.iter().all(|(check, ..)| check != "service"), "{:#?}", said.checks);
    let text = said.text.to_lowercase();
    assert!(
        !text.contains("service") && !text.contains("perto-chat serve") && !text.contains("chat"),
        "{text}"
    );
    assert!(said.well, "{:#?}", said.worst());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_whose_tables_are_of_an_older_version_or_gone_is_told_to_migrate() {
    let database = migrated();
    doctor(&database.url, "", &[]).await.tells("service", "ok", "its tables are here, of version", "");
    sql(&database.url, "drop table tool_results").await;
    let said = doctor(&database.url, "", &[]).await;
    said.tells("service", "wrong", "its table tool_results is not in this database", "perto-chat migrate");
    sql(&database.url, "delete from _sqlx_migrations where version > 1").await;
    let said = doctor(&database.url, "", &[]).await;
    said.tells("service", "wrong", "its tables are of version 1, this Perto needs", "perto-chat migrate");
}

/// Of all columns it would invalidate with each write to a chat, where the service declares one.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_watches_for_the_service_is_mended_by_the_command_as_it_is_said() {
    let database = migrated();
    let names = async || {
        let mut connection = PgConnection::connect(&database.url).await.unwrap();
        let all = perto::postgres::watched(&mut connection, "perto").await.unwrap();
        assert!(all.iter().all(|watched| watched.faults.is_empty()), "{all:?}");
        all.into_iter().map(|watched| watched.watch).collect::<Vec<_>>()
    };
    let before = names().await;
    for watch in &before {
        let remove = ["watch", &watch.table, "--cache", &watch.cache, "--remove"];
        succeed(perto(&database.url, "").args(remove));
    }
    let said = doctor(&database.url, "", &[]).await;
    let mends = said.mends("service");
    assert_eq!(mends.len(), before.len(), "{mends:#?}");
    let of_chats = "perto-chat watch public.chats --cache message --key id --columns company_id";
    assert!(mends.iter().any(|mend| mend == of_chats), "{mends:#?}");
    for mend in &mends {
        run(&database.url, mend).await;
    }
    assert_eq!(names().await, before);
    let said = succeed(perto(&database.url, "").arg("migrate"));
    assert_eq!(
        String::from_utf8_lossy(&said.stdout),
        "the tables and triggers are there already: nothing to do\n"
    );
}

/// As by hand, or by an older Perto.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_watched_for_the_service_otherwise_than_it_declares_is_told_of() {
    let database = migrated();
    for (table, cache, other) in [
        ("companies", "company", &["--key", "id + 0"][..]),
        ("users", "user", &["--key", "id", "--columns", "name"]),
        ("chats", "message", &["--key", "id"]),
        ("chats", "inbox", &["--key", "company_id", "--columns", "last_body"]),
    ] {
        succeed(perto(&database.url, "").args(["watch", table, "--cache", cache, "--replace"]).args(other));
    }
    let said = doctor(&database.url, "", &[]).await;
    said.tells(
        "service",
        "wrong",
        "cache or topic company reads public.companies, which is watched by the key \"id + 0\" instead of \"id\"",
        "perto-chat watch public.companies --cache company --key id --replace",
    );
    let users = "which is watched for nothing but id, name: writes to what is left out are not seen";
    said.tells("service", "wrong", users, "perto-chat watch public.users --cache user --key id --replace");
    let chats = "cache or topic message reads public.chats, which is watched for all columns";
    said.tells("service", "warn", chats, "--cache message --key id --columns company_id --replace");
    said.tells("service", "wrong", "cache or topic inbox reads public.chats, which is watched", "--replace");
    for mend in said.mends("service") {
        run(&database.url, &mend).await;
    }
    let said = doctor(&database.url, "", &[]).await;
    assert_eq!(said.mends("service"), [""; 0]);
}

/// What a program's caches declare, as it writes it down.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_a_program_declares_and_nobody_watches_is_told_of() {
    let database = Database::new();
    succeed(perto(&database.url, "").args(["migrate", "--log-only"]));
    sql(&database.url, "create table users (id bigint); create table orders (id bigint); create table \"Odd One\" (id bigint)")
        .await;
    succeed(perto(&database.url, "").args(["watch", "users", "--cache", "user"]));
    let program = perto::Perto::builder("shop").postgres(&database.url).build().unwrap();
    let loader =
        async |_: perto::Load<i64>| Ok::<_, std::io::Error>(perto::Loaded::<i64, String>::computed());
    let _caches = [
        program.cache::<i64, String>("user").tables(["users"]).loader(loader).unwrap(),
        program.cache("order").tables(["public.orders", "prodcts", "no such; table"]).loader(loader).unwrap(),
        program.cache("odd").tables(["\"Odd One\""]).loader(loader).unwrap(),
        program.cache("same").watch("users", "id").loader(loader).unwrap(),
        program.cache("sum").loader(loader).unwrap(),
    ];
    let folder = Folder::new("declared");
    let file = folder.0.join("caches.json");
    std::fs::write(&file, serde_json::to_string(&program.declared()).unwrap()).unwrap();
    let look = async || doctor(&database.url, "", &["--declared", file.to_str().unwrap()]).await;
    let said = look().await;
    said.tells("declared", "ok", "cache or topic user reads public.users, which is watched", "");
    said.tells("declared", "ok", "cache or topic sum declares no table", "");
    said.tells(
        "declared",
        "wrong",
        "cache or topic order reads prodcts, which is not in this database",
        "correct `.tables(",
    );
    said.tells(
        "declared",
        "wrong",
        "cache or topic order reads no such; table, which is not in this database",
        "",
    );
    let mend = "perto-chat watch public.orders --cache order --key EXPR";
    said.tells(
        "declared",
        "wrong",
        "cache or topic order reads public.orders, which nobody watches for it",
        mend,
    );
    let same = "perto-chat watch public.users --cache same --key id";
    said.tells("declared", "wrong", "cache or topic same reads public.users, which nobody watches", same);
    succeed(perto(&database.url, "").args(["watch", "users", "--cache", "same", "--key", "id / 2"]));
    let other = "which is watched by the key \"id / 2\" instead of \"id\"";
    look().await.tells("declared", "wrong", other, &format!("{same} --replace"));
    let odd = r#"perto-chat watch 'public."Odd One"' --cache odd --key EXPR"#;
    said.tells("declared", "wrong", r#"cache or topic odd reads public."Odd One""#, odd);
    run(&database.url, &odd.replace("EXPR", "id")).await;
    look().await.tells(
        "declared",
        "ok",
        r#"cache or topic odd reads public."Odd One", which is watched"#,
        "",
    );
    for text in ["{}", "[{\"cache\": 1}]", "none"] {
        std::fs::write(&file, text).unwrap();
        let output = perto(&database.url, "").args(["doctor", "--declared"]).arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains("--declared: ") && said.contains("Perto::declared()"),
            "{said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_columns_whose_texts_compare_otherwise_than_keys_are_told_of() {
    let database = Database::new();
    succeed(perto(&database.url, "").args(["migrate", "--log-only"]));
    sql(
        &database.url,
        "create collation ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
         create table shops (code char(8), slug text collate ci, id bigint)",
    )
    .await;
    for (cache, key) in [("a", "id"), ("b", "id || ':' || code"), ("c", "slug"), ("d", "lower(slug)")] {
        succeed(perto(&database.url, "").args(["watch", "shops", "--cache", cache, "--key", key]));
    }
    let said = doctor(&database.url, "", &[]).await;
    let padded = "code of public.shops, in the key of cache or topic b, is character(8)";
    said.tells("keys", "warn", padded, "alter table public.shops alter column code type varchar;");
    let mend = "perto-chat watch public.shops --cache c --key 'lower(slug::text)'";
    said.tells(
        "keys",
        "warn",
        "slug of public.shops, in the key of cache or topic c, is text collate ci",
        mend,
    );
    let mends = said.mends("keys");
    assert_eq!(mends.len(), 2, "{mends:#?}");
    for mend in mends {
        run(&database.url, &mend).await;
    }
    let said = doctor(&database.url, "", &[]).await;
    assert!(said.worst().iter().all(|(check, ..)| check != "keys"), "{:#?}", said.worst());
    // Of an extension, which not every machine has.
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let available = sqlx::query("select from pg_available_extensions where name = 'citext'");
    if available.fetch_optional(&mut connection).await.unwrap().is_none() {
        drop(writeln!(
            std::io::stderr(),
            "SKIPPED, a part of it: there is no citext here (postgresql-contrib)"
        ));
        return;
    }
    sql(&database.url, "create extension citext; create table emails (email citext)").await;
    succeed(perto(&database.url, "").args(["watch", "emails", "--cache", "email", "--key", "email::text"]));
    let said = doctor(&database.url, "", &[]).await;
    said.tells(
        "keys",
        "warn",
        "email of public.emails, in the key of cache or topic email, is citext",
        "lower(email::text)",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sql_that_is_printed_can_be_run_as_it_is() {
    let database = Database::new();
    succeed(perto(&database.url, "").args(["migrate", "--log-only"]));
    sql(&database.url, "create table shops (id bigint)").await;
    let watch = ["watch", "shops", "--cache", "shop", "--sql"];
    let printed = perto(&database.url, "").args(watch).output().unwrap();
    sql(&database.url, &String::from_utf8(printed.stdout).unwrap()).await;
    doctor(&database.url, "", &[]).await.tells(
        "watched tables",
        "ok",
        "public.shops (cache or topic shop), by id",
        "",
    );
    let again = perto(&database.url, "").args(watch).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&again.stdout), "-- nothing to do\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn trigger_functions_that_nothing_runs_are_told_of() {
    let database = Database::new();
    succeed(perto(&database.url, "").args(["migrate", "--log-only"]));
    sql(&database.url, "create table shops (id bigint)").await;
    succeed(perto(&database.url, "").args(["watch", "shops", "--cache", "shop"]));
    sql(&database.url, "drop table shops").await;
    let said = doctor(&database.url, "", &[]).await;
    said.tells("functions", "warn", "no trigger runs perto.", "drop function perto.");
    for mend in said.mends("functions").iter().chain(&said.mends("watched tables")) {
        run(&database.url, mend).await;
    }
    let said = doctor(&database.url, "", &[]).await;
    assert!(
        said.checks.iter().all(|(check, state, ..)| check != "functions" || state == "ok"),
        "{:#?}",
        said.checks
    );
}
