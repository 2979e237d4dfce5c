//! A service's database that was dumped and restored under another name: its tables have other numbers there.

use perto::postgres;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::command::{Served, perto, succeed};
use crate::service::request;
use crate::support::engines::redis_url;
use crate::support::postgres::PrivatePostgres;

const FUNCTIONS: &str = "select count(*) from pg_proc \
    where pronamespace = 'perto'::regnamespace and prorettype = 'trigger'::regtype";

async fn watched_well(connection: &mut PgConnection) -> usize {
    let all = postgres::watched(connection, "perto").await.unwrap();
    assert!(all.iter().all(|watched| watched.faults.is_empty()), "{all:#?}");
    all.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_was_restored_into_another_database_is_whole_there_and_migrates_there() {
    let server = PrivatePostgres::start().await;
    let (url, restored) = (server.url("postgres"), server.url("restored"));
    succeed(perto(&url, "").arg("migrate"));
    let amounts = "--companies 2 --users 2 --contacts 2 --messages 2";
    succeed(perto(&url, "").arg("seed").args(amounts.split(' ')));
    let mut here = PgConnection::connect(&url).await.unwrap();
    let watched = watched_well(&mut here).await;
    sqlx::raw_sql("create database restored").execute(&mut here).await.unwrap();
    server.dump_into("postgres", "restored");

    let mut there = PgConnection::connect(&restored).await.unwrap();
    let companies = "select 'companies'::regclass::oid::bigint";
    let number: i64 = sqlx::query_scalar(companies).fetch_one(&mut here).await.unwrap();
    let other: i64 = sqlx::query_scalar(companies).fetch_one(&mut there).await.unwrap();
    assert_ne!(number, other, "else this shows nothing");
    // And what is recorded of a table may be the number of another one.
    let swap = "update perto.watched w set relid = o.name::regclass from perto.watched o \
        where (w.cache, o.cache) in (('company', 'user'), ('user', 'company'))";
    sqlx::raw_sql(swap).execute(&mut there).await.unwrap();
    let functions: i64 = sqlx::query_scalar(FUNCTIONS).fetch_one(&mut there).await.unwrap();
    let rows = "select count(*) from perto.invalidation";
    for broken in [false, true] {
        if broken {
            sqlx::raw_sql("alter table companies disable trigger all").execute(&mut there).await.unwrap();
        }
        let before: i64 = sqlx::query_scalar(rows).fetch_one(&mut there).await.unwrap();
        succeed(perto(&restored, "").arg("migrate"));
        let after: i64 = sqlx::query_scalar(rows).fetch_one(&mut there).await.unwrap();
        assert_eq!(after - before, i64::from(broken), "what is as it should be is left alone");
        assert_eq!(watched_well(&mut there).await, watched);
        let left: i64 = sqlx::query_scalar(FUNCTIONS).fetch_one(&mut there).await.unwrap();
        assert_eq!(left, functions, "none that nothing runs");
    }

    let a = Served::start_on(&restored, &redis_url(), "a", &[]);
    for name in ["One", "Two"] {
        assert_eq!(request(&a, "GET", "/api/v1/companies/1", "", "").await.status, 200);
        let change = json!({ "name": name }).to_string();
        let changed = request(&a, "PATCH", "/api/v1/companies/1", "", &change).await;
        assert_eq!(changed.status, 200, "{}", changed.text);
        let read = request(&a, "GET", "/api/v1/companies/1", &changed.at_least(), "").await;
        assert_eq!(read.body["name"], json!(name), "{}", read.text);
    }
}
