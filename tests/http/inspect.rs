//! `perto inspect`, and what an instance says of one entry over HTTP.

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::command::{Database, Served, perto, succeed};
use crate::service::{request, two_instances};
use crate::support::engines::redis_url;
use crate::support::wait::eventually;

async fn inspect(database: &Database, arguments: &[&str]) -> String {
    let mut command = perto(&database.url, &redis_url());
    command.arg("inspect").args(arguments);
    let output = tokio::task::spawn_blocking(move || succeed(&mut command)).await.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// What a table says, wherever its lines are broken.
fn words(table: &str) -> String {
    table.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn document(database: &Database, arguments: &[&str]) -> Value {
    serde_json::from_str(&inspect(database, &[arguments, &["--json"]].concat()).await).unwrap()
}

async fn entry(served: &Served, key: &str) -> Value {
    let response = request(served, "GET", &format!("/api/v1/cache/company/entries/{key}"), "", "").await;
    assert_eq!(response.status, 200);
    response.body
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_is_shown_by_an_instance_without_its_value() {
    let (_database, a, b) = two_instances();
    let before = entry(&a, "1").await;
    assert_eq!((&before["l1"], &before["l2"]["is"]), (&Value::Null, &json!("nothing")));
    request(&a, "GET", "/api/v1/companies/1", "", "").await;
    eventually("it is in both tiers", async || {
        let seen = entry(&a, "1").await;
        seen["l1"]["served"] == true && seen["l2"]["served"] == true
    })
    .await;
    assert_eq!(before["keyHash"], format!("{:016x}", perto::key_hash("1")));
    let there = entry(&b, "1").await;
    assert_eq!(
        (&there["instance"], &there["l1"], &there["l2"]["served"]),
        (&json!("b"), &Value::Null, &json!(true))
    );
    assert!(!there.to_string().contains("Company 1"), "{there}");
    let read = request(&b, "GET", "/api/v1/companies/1", "", "").await;
    assert_eq!(read.header("perto-tier"), Some("l2"), "looking loads nothing");
    for (path, status, says) in [
        ("/api/v1/cache/none/entries/1", 404, "cache"),
        ("/api/v1/cache/company/entries/x", 400, "key"),
        ("/api/v1/cache/company/entries/%FF", 400, "key"),
        ("/api/v1/cache/company/entries/99999999999999999999", 400, "key"),
    ] {
        let response = request(&a, "GET", path, "", "").await;
        assert_eq!(response.status, status, "{path}");
        assert_eq!(response.header("content-type"), Some("application/problem+json"), "{path}");
        assert!(response.body["detail"].as_str().unwrap().contains(says), "{path}: {}", response.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_shown_through_the_log_l2_and_every_instance() {
    let (database, a, b) = two_instances();
    let urls = [format!("http://{}", a.address), format!("http://{}/", b.address)];
    let instances = ["--instance", &urls[0], "--instance", &urls[1]];
    // By its table: the cache is called otherwise.
    let look = async || document(&database, &[&["companies", "1"], &instances[..]].concat()).await;
    request(&a, "GET", "/api/v1/companies/1", "", "").await;
    eventually("L2 has it", async || look().await["l2"]["is"] == "value").await;
    let seen = look().await;
    assert_eq!((&seen["cache"], &seen["l2"]["misses"]), (&json!("company"), &Value::Null));
    assert_eq!(seen["keyHash"], seen["instances"][0]["seen"]["keyHash"]);
    assert_eq!(seen["instances"][0]["seen"]["l1"]["served"], true);
    assert_eq!(seen["l2"]["stamp"], seen["instances"][1]["seen"]["l2"]["stamp"]);

    let table = inspect(&database, &["company", "1"]).await;
    assert!(table.contains("Name instances by --instance URL"), "{table}");
    assert!(table.contains(seen["keyHash"].as_str().unwrap()), "{table}");
    // By hand: no hint comes, so L2 keeps what misses the write, and whoever has read the log refuses it.
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    sqlx::query("update companies set name = 'secret of mine' where id = 1")
        .execute(&mut connection)
        .await
        .unwrap();
    let xid: String =
        sqlx::query_scalar("select max(xid)::text from perto.invalidation where keys is not null")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    eventually("both refuse what L2 has", async || {
        let seen = look().await;
        let refuses =
            |at: usize| seen["instances"][at]["seen"]["l2"]["refused"] == format!("misses transaction {xid}");
        assert_eq!(seen["log"][0]["transaction"], xid.as_str(), "{seen}");
        seen["l2"]["misses"] == xid.as_str() && refuses(0) && refuses(1)
    })
    .await;
    let table = inspect(&database, &[&["company", "1"], &instances[..]].concat()).await;
    assert!(words(&table).contains(&format!("misses transaction {xid}")), "{table}");
    assert!(
        table.lines().any(|line| line.starts_with("L1    a") && line.contains("nothing; coherent")),
        "{table}"
    );
    assert!(!table.contains("secret of mine"), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");

    let change = json!({ "name": "new" }).to_string();
    request(&b, "PATCH", "/api/v1/companies/1", "", &change).await;
    let table = inspect(&database, &["company", "1"]).await;
    assert!(words(&table).contains("a tombstone of transaction"), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_asked_is_said_in_its_row() {
    let database = Database::new();
    succeed(perto(&database.url, "").arg("migrate"));
    let mut command = perto(&database.url, "redis://:s3cret@127.0.0.1:1");
    command.args([
        "inspect",
        "company",
        "a/b ?",
        "--instance",
        "http://127.0.0.1:1",
        "--instance",
        "ftp://x:s3cret@y",
    ]);
    let output = succeed(&mut command);
    let table = words(&String::from_utf8_lossy(&output.stdout));
    assert!(table.contains("no instance has read the log since Postgres was started"), "{table}");
    assert!(table.contains("can't be reached") && table.contains("not a URL like"), "{table}");
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let boot = "insert into perto.boot (origin) values (perto.origin())";
    sqlx::raw_sql(AssertSqlSafe(boot)).execute(&mut connection).await.unwrap();
    let output = succeed(&mut command);
    let table = words(&String::from_utf8_lossy(&output.stdout));
    assert!(table.contains("REDIS_URL: 127.0.0.1:1 can't be reached"), "{table}");
    assert!(!table.contains("s3cret"), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_redis_has_nothing_for_an_app_those_are_named_that_it_has_the_cache_for() {
    let (database, a, _b) = two_instances();
    request(&a, "GET", "/api/v1/companies/1", "", "").await;
    let look = async |app: &str| inspect(&database, &["company", "1", "--app", app]).await;
    let right = document(&database, &["company", "1"]).await["app"].as_str().unwrap().to_owned();
    eventually("L2 has it", async || !look(&right).await.contains("holds nothing")).await;
    let said = look("another").await;
    let words = words(&said);
    assert!(words.contains("Redis holds nothing of it for the app \"another\": see --app"), "{said}");
    let (_, apps) =
        words.split_once("It holds values of this cache for: ").unwrap_or_else(|| panic!("{said}"));
    let (apps, _) = apps.split_once('.').unwrap();
    assert!(apps.split(", ").any(|app| app == right), "{said}");
    assert!(!apps.contains("another"), "{said}");
    assert!(said.contains("L1 is in each process."), "{said}");
}

#[test]
fn a_cache_that_nobody_knows_is_refused_with_those_that_there_are() {
    let database = Database::new();
    succeed(perto(&database.url, "").arg("migrate"));
    let output = perto(&database.url, &redis_url()).args(["inspect", "nosuch", "1"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{said}");
    assert!(
        said.contains("\"nosuch\"") && said.contains("api_key, company, contact, contact_by_phone"),
        "{said}"
    );
    succeed(perto(&database.url, &redis_url()).args(["inspect", "company", "1"]));
}
