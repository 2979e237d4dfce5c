//! Values of many rows: tables watched for topics, and what a value depends on.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use perto::{Cache, InRemote, Inspection, Load, Perto, Read, Tier, Topic, postgres};
use perto_cli::shown;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::*;

const TABLES: &str = "create table companies (id bigint primary key, name text not null); \
     create table contacts (id bigint primary key, name text not null, company_id bigint not null, seen_at timestamptz); \
     insert into companies values (7, 'Acme'), (8, 'Beta'); insert into contacts values (1, 'Ada', 7)";

/// A database with these tables and a log.
async fn prepared(name: &str) -> (String, String, PgPool) {
    let (name, url) = fresh(name);
    drop_database(&name).await;
    succeed(&url, &["migrate"]);
    let pool = PgPool::connect(&url).await.unwrap();
    sqlx::raw_sql(TABLES).execute(&pool).await.unwrap();
    (name, url, pool)
}

/// What the last transaction wrote into the log: names with their keys.
async fn logged(pool: &PgPool) -> Vec<(String, Vec<String>)> {
    sqlx::query_as(
        "select cache, (select array_agg(key order by key) from unnest(keys) key) from perto.invalidation \
         where xid = (select xid from perto.invalidation order by xid desc limit 1) order by cache",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn a_table_is_watched_for_several_caches_and_topics_and_each_goes_by_itself() {
    let (name, url, pool) = prepared("topics").await;
    let watch = |more: &[&str]| succeed(&url, &[&["watch", "contacts"], more].concat());
    watch(&["--cache", "contact"]);
    watch(&["--cache", "contact_by_name", "--key", "name"]);
    let said = watch(&["--topic", "of_company", "--key", "company_id"]);
    assert_eq!(said, "public.contacts is now watched for topic of_company, by company_id\n");
    watch(&["--topic", "heads", "--key", "company_id", "--columns", "company_id"]);
    // Who moves is seen by those who lose him and by those who get him.
    sqlx::raw_sql("update contacts set company_id = 8 where id = 1").execute(&pool).await.unwrap();
    let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
    let of = |name: &str, of: &[&str]| (name.to_owned(), keys(of));
    assert_eq!(
        logged(&pool).await,
        [
            of("contact", &["1"]),
            of("contact_by_name", &["Ada"]),
            of("heads", &["7", "8"]),
            of("of_company", &["7", "8"])
        ]
    );
    sqlx::raw_sql("update contacts set seen_at = now() where id = 1").execute(&pool).await.unwrap();
    let named: Vec<String> = logged(&pool).await.into_iter().map(|(name, _)| name).collect();
    assert_eq!(named, ["contact", "contact_by_name", "of_company"], "it changes no column of the heads");

    let doctor = succeed(&url, &["doctor"]).split_whitespace().collect::<Vec<_>>().join(" ");
    for watched in [
        "(cache or topic contact), by id",
        "(cache or topic heads), by company_id, where id, company_id change",
    ] {
        assert!(doctor.contains(&format!("public.contacts {watched}")), "{watched}: {doctor}");
    }
    let said = watch(&["--topic", "of_company", "--remove"]);
    assert_eq!(said, "public.contacts is no longer watched for topic of_company\n");
    watch(&["--cache", "contact_by_name", "--remove"]);
    sqlx::raw_sql("delete from contacts").execute(&pool).await.unwrap();
    assert_eq!(logged(&pool).await, [of("contact", &["1"]), of("heads", &["8"])]);
    pool.close().await;
    drop_database(&name).await;
}

#[tokio::test]
async fn a_watch_is_for_a_cache_or_a_topic_and_a_topics_key_is_said() {
    let (name, url, pool) = prepared("either").await;
    for (more, says) in [
        (&["--key", "id"][..], "--cache <NAME>|--topic <NAME>"),
        (
            &["--cache", "a", "--topic", "b", "--key", "id"],
            "'--cache <NAME>' cannot be used with '--topic <NAME>'",
        ),
        (&["--topic", "of_company"], "--key: of a topic, the set that a row belongs to"),
    ] {
        let said = refused(&url, &[&["watch", "contacts"], more].concat());
        assert!(said.contains(says), "{more:?}: {said}");
    }
    let watched: i64 =
        sqlx::query_scalar("select count(*) from perto.watched").fetch_one(&pool).await.unwrap();
    assert_eq!(watched, 0);
    pool.close().await;
    drop_database(&name).await;
}

/// The file names caches and topics alike.
#[tokio::test]
async fn a_topic_that_a_program_declares_and_nobody_watches_is_told_of() {
    let (name, url, pool) = prepared("declared").await;
    let perto_of = Perto::builder(&name).postgres(&url).build().unwrap();
    perto_of.topic::<i64>("of_company").tables(["contacts"]).declare().unwrap();
    let file = std::env::temp_dir().join(format!("{name}.json"));
    std::fs::write(&file, serde_json::to_string(&perto_of.declared()).unwrap()).unwrap();
    let look = || {
        let output = perto(&url, &["doctor", "--json", "--declared", file.to_str().unwrap()]);
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let checks = said["checks"].as_array().unwrap();
        checks.iter().find(|check| check["check"] == "declared").unwrap().clone()
    };
    let found = look();
    assert_eq!(found["state"], "wrong", "{found}");
    assert!(
        found["found"].as_str().unwrap().starts_with("cache or topic of_company reads public.contacts"),
        "{found}"
    );
    // The command that it says mends it, with the key in its place.
    let mend = found["mend"][0].as_str().unwrap().replace("EXPR", "company_id");
    succeed(&url, &mend.split(' ').skip(1).collect::<Vec<_>>());
    assert_eq!(look()["state"], "ok");
    drop((std::fs::remove_file(file), perto_of));
    pool.close().await;
    drop_database(&name).await;
}

type Card = (String, i64, String);

/// An instance with a join and a list.
struct Crm {
    perto: Perto,
    cards: Cache<i64, Card>,
    lists: Cache<i64, Vec<String>>,
}

impl Crm {
    async fn open(app: &str, url: &str, pool: &PgPool) -> Self {
        let perto = Perto::builder(app).postgres(url).redis(&redis_url()).build().unwrap();
        let companies: Cache<i64, String> = perto
            .cache("company")
            .watch("companies", "id")
            .loader(postgres::by_key(pool, "select id, name from companies where id = any($1)"))
            .unwrap();
        let set: Topic<i64> = perto.topic("of_company").watch("contacts", "company_id").declare().unwrap();
        // Nothing watches any table for it.
        let settings: Topic<i64> = perto.topic("settings").declare().unwrap();
        let reading = pool.clone();
        let cards = perto.cache("card").watch("contacts", "id").loader(move |load: Load<i64>| {
            let (pool, companies, settings) = (reading.clone(), companies.clone(), settings.clone());
            async move {
                let sql = "select t.id, t.name, t.company_id, c.name from contacts t join companies c on c.id = t.company_id \
                           where t.id = any($1)";
                let query = postgres::query_as::<(i64, String, i64, String)>(sql).bind(load.keys);
                let loaded = query.fetch(&pool).await?.by_key(|(id, name, of, company)| (id, (name, of, company)));
                let on = move |_: &i64, card: Option<&Card>| {
                    card.map_or_else(Vec::new, |card| vec![companies.key(&card.1), settings.key(&0)])
                };
                Ok::<_, sqlx::Error>(loaded.depends_on(on))
            }
        });
        let sql = "select company_id, array_agg(name order by name) from contacts where company_id = any($1) group by 1";
        let load = postgres::by_key(pool, sql);
        let lists =
            perto.cache("list").tables([""; 0]).loader(move |keys| {
                let (loading, set) = (load(keys), set.clone());
                async move {
                    Ok::<_, sqlx::Error>(loading.await?.depends_on(move |company, _| [set.key(company)]))
                }
            });
        let crm = Self { cards: cards.unwrap(), lists: lists.unwrap(), perto };
        crm.perto.migrate().await.unwrap();
        crm.perto.start().await.unwrap();
        crm.perto.ready().await.unwrap();
        crm
    }
}

/// Reads until both tiers hold what is served.
async fn held<V: perto::Value>(cache: &Cache<i64, V>, key: i64) -> Inspection {
    let began = Instant::now();
    loop {
        let read: Read<V> = cache.get(&key).await.unwrap();
        let seen = cache.inspect(&key).await.unwrap();
        let in_remote = matches!(seen.remote, InRemote::Value(_)) && seen.remote_refused.is_none();
        if read.tier == Tier::Local && in_remote {
            return seen;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "it is not held: {seen:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The command's rows, and its JSON.
fn inspect(app: &str, url: &str, of: &[&str], instances: &[&str]) -> (String, Value) {
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_perto"));
        command.env("DATABASE_URL", url).env("REDIS_URL", redis_url()).stdin(Stdio::null());
        let output =
            command.arg("inspect").args(of).args(["--app", app]).args(instances).args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    (run(&[]), serde_json::from_str(&run(&["--json"])).unwrap())
}

async fn last_xid(pool: &PgPool) -> String {
    sqlx::query_scalar("select xid::text from perto.invalidation order by xid desc limit 1")
        .fetch_one(pool)
        .await
        .unwrap()
}

/// The only row of what it depends on that begins and goes on so.
fn row<'t>(table: &'t str, tier: &str, has: &str) -> &'t str {
    let (_, depends) = table.split_once("ALLOWS").unwrap();
    let rows: Vec<&str> =
        depends.lines().filter(|line| line.starts_with(tier) && line.contains(has)).collect();
    assert_eq!(rows.len(), 1, "{tier} {has}: {table}");
    rows[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_says_what_a_value_depends_on_and_which_of_it_refuses_it() {
    let (name, url, pool) = prepared("inspect").await;
    let crm = Crm::open(&name, &url, &pool).await;
    held(&crm.cards, 1).await;
    let (table, seen) = inspect(&name, &url, &["card", "1"], &[]);
    let on = |cache: &str, key: &str, misses: Option<&str>, watched: bool| json!({ "cache": cache, "key": key, "misses": misses, "watched": watched });
    let settings = on("settings", "0", None, false);
    assert_eq!(seen["l2"]["misses"], Value::Null);
    assert_eq!(seen["l2"]["depends"], json!([on("company", "7", None, true), settings]));
    assert!(row(&table, "L2", "company 7").ends_with(" yes     company 7"), "{table}");
    assert!(
        row(&table, "L2", "settings 0").ends_with("settings 0, for which no table is watched"),
        "{table}"
    );

    // Another company's row is nothing to it.
    sqlx::raw_sql("update companies set name = 'other' where id = 8").execute(&pool).await.unwrap();
    let (_, seen) = inspect(&name, &url, &["card", "1"], &[]);
    assert_eq!(seen["l2"]["depends"], json!([on("company", "7", None, true), settings]));

    // By hand: no hint comes, so L2 keeps what misses the write to the row that was joined.
    sqlx::raw_sql("update companies set name = 'secret of mine' where id = 7").execute(&pool).await.unwrap();
    let xid = last_xid(&pool).await;
    let (table, seen) = inspect(&name, &url, &["card", "1"], &[]);
    assert_eq!(seen["l2"]["misses"], Value::Null, "nobody wrote the card's own row: {seen}");
    assert_eq!(seen["l2"]["depends"], json!([on("company", "7", Some(&xid), true), settings]));
    let why = format!("misses transaction {xid}");
    assert!(row(&table, "L2", "company 7: ").ends_with(&format!("no      company 7: {why}")), "{table}");
    // Of the value, and of what it depends on.
    let words = table.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words.matches(&format!(" no company 7: {why}")).count(), 2, "{table}");
    assert!(
        !table.contains("secret") && table.lines().skip(1).all(|line| line.chars().count() <= 100),
        "{table}"
    );

    // What is loaded anew is served.
    tokio::time::sleep(Duration::from_secs(1)).await;
    held(&crm.cards, 1).await;
    let (_, seen) = inspect(&name, &url, &["card", "1"], &[]);
    assert_eq!(seen["l2"]["depends"][0]["misses"], Value::Null, "{seen}");
    // Of a topic L2 has no values.
    let (table, _) = inspect(&name, &url, &["of_company", "7"], &[]);
    let words = table.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("Of a topic it never holds any."), "{table}");
    crm.perto.shutdown().await;
    pool.close().await;
    drop_database(&name).await;
}

/// More transactions than are shown have written the set since, and the value has them all. What it misses is older than they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_commits_late_refuses_what_was_loaded_before_it_though_newer_ones_do_not() {
    let (name, url, pool) = prepared("late").await;
    let crm = Crm::open(&name, &url, &pool).await;
    let mut late = pool.begin().await.unwrap();
    sqlx::raw_sql("insert into contacts values (99, 'Late', 7)").execute(&mut *late).await.unwrap();
    let xid: String =
        sqlx::query_scalar("select pg_current_xact_id()::text").fetch_one(&mut *late).await.unwrap();
    for id in 10..25 {
        let insert = format!("insert into contacts values ({id}, 'n{id}', 7)");
        sqlx::raw_sql(AssertSqlSafe(insert)).execute(&pool).await.unwrap();
    }
    held(&crm.lists, 7).await;
    late.commit().await.unwrap();
    let (_, seen) = inspect(&name, &url, &["list", "7"], &[]);
    assert_eq!(seen["l2"]["depends"][0]["misses"], xid.as_str(), "{seen}");
    crm.perto.shutdown().await;
    pool.close().await;
    drop_database(&name).await;
}

/// An instance that answers what it is asked of one entry, as the service does. It ends with the tests.
fn answering(answer: Arc<Mutex<Value>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let head = stream.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty());
            assert!(head.count() > 0, "a request");
            let body = answer.lock().to_string();
            let length = body.len();
            write!(stream.get_mut(), "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_says_which_dependency_refuses_what_an_instance_holds() {
    let (name, url, pool) = prepared("local").await;
    let crm = Crm::open(&name, &url, &pool).await;
    let answer = Arc::new(Mutex::new(Value::Null));
    let instance = answering(Arc::clone(&answer));
    let look = || inspect(&name, &url, &["card", "1"], &["--instance", &instance]).0;
    let put = |seen: &Inspection| {
        let local = shown::in_local(seen.local.as_ref().unwrap());
        *answer.lock() =
            json!({ "instance": "a", "state": "coherent", "l1": local, "l2": { "is": "nothing" } });
    };
    put(&held(&crm.cards, 1).await);
    assert_eq!(answer.lock()["l1"]["served"], true);
    assert!(row(&look(), "L1", "company 7").ends_with("yes     company 7"));

    sqlx::raw_sql("update companies set name = 'Acme Ltd' where id = 7").execute(&pool).await.unwrap();
    let why = format!("misses transaction {}", last_xid(&pool).await);
    // Nobody reads it: it stays, and would be refused.
    tokio::time::sleep(Duration::from_secs(1)).await;
    put(&crm.cards.inspect(&1).await.unwrap());
    assert_eq!(answer.lock()["l1"]["served"], false);
    let table = look();
    assert!(row(&table, "L1", "company 7: ").ends_with(&format!("no      company 7: {why}")), "{table}");
    assert!(row(&table, "L1", "settings 0").ends_with("yes     settings 0"), "{table}");
    // Of both values, and of what they depend on.
    let words = table.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(words.matches(&format!(" no company 7: {why}")).count(), 4, "{table}");
    crm.perto.shutdown().await;
    pool.close().await;
    drop_database(&name).await;
}
