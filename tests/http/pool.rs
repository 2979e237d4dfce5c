//! The pool of connections to Postgres: exhausted, and behind a transaction pooler.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::command::{Served, perto, seeded, succeed};
use crate::resources::CHAT;
use crate::service::request;
use crate::support::engines::redis_url;
use crate::support::pgbouncer::PrivateBouncer;
use crate::support::postgres::PrivatePostgres;

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_pool_is_a_503_that_says_when_to_come_back_while_reads_go_on() {
    let database = seeded();
    let small = ["--pool-size", "4", "--pool-acquire", "500ms"];
    let a = Served::start_on(&database.url, &redis_url(), "a", &small);
    // Somebody holds the row that all want to write.
    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    sqlx::query("update companies set name = 'held' where id = 1").execute(&mut *held).await.unwrap();
    let began = Instant::now();
    let rename = json!({ "name": "other" }).to_string();
    let writes = (0..20).map(|_| request(&a, "PATCH", "/api/v1/companies/1", "", &rename));
    let (writes, read) = tokio::join!(futures_util::future::join_all(writes), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        request(&a, "GET", "/api/v1/companies/2", "", "").await
    });
    assert_eq!(read.status, 200, "loads have connections of their own: {}", read.text);
    for write in &writes {
        assert_eq!(write.status, 503, "{}", write.text);
        assert_eq!(
            (write.header("retry-after"), &write.body["type"]),
            (Some("1"), &json!("urn:perto:problem:unavailable"))
        );
    }
    // Who waits for a row may wait for its queue and then for its holder.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    held.rollback().await.unwrap();
    let again = request(&a, "PATCH", "/api/v1/companies/1", "", &rename).await;
    assert_eq!((again.status, &again.body["name"]), (200, &json!("other")));
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_transaction_pooler_every_resource_is_written_and_read() {
    let server = PrivatePostgres::start().await;
    let direct = server.url("service");
    succeed(perto(&direct, "").arg("migrate"));
    let amounts = ["--companies", "20", "--users", "40", "--contacts", "400", "--messages", "2000"];
    succeed(perto(&direct, "").arg("seed").args(amounts));
    let bouncer = PrivateBouncer::start(server.port, 4).await;
    let pooled = bouncer.url("service");
    // Of so small a window, what is older is asked of Postgres.
    let unprepared = ["--prepared-statements", "false", "--message-window", "5"];
    let start = |name: &str| Served::start_on(&pooled, &redis_url(), name, &unprepared);
    let (a, b) = (start("a"), start("b"));
    let contacts = "/api/v1/companies/1/contacts";
    let round = async |worker: usize| {
        for round in 0..20 {
            let said = format!("worker {worker}, round {round}");
            let chat = format!("/api/v1/chats/00000000-0000-4000-8000-{:012x}", worker + 1);
            let contact = format!("{contacts}/{}", 20 * (worker + 1));
            for (method, path, body, read, field) in [
                (
                    "PATCH",
                    format!("/api/v1/companies/{}", worker + 5),
                    json!({ "name": said }),
                    None,
                    "/name",
                ),
                ("PATCH", format!("/api/v1/users/{}", worker + 1), json!({ "name": said }), None, "/name"),
                ("PATCH", contact, json!({ "name": said }), None, "/name"),
                ("PUT", format!("{chat}/tool-results/w"), json!(said), None, "/result"),
                (
                    "POST",
                    format!("{chat}/messages"),
                    json!({ "sender": "user", "body": said }),
                    Some(format!("{chat}/messages?limit=1")),
                    "/messages/0/body",
                ),
            ] {
                let written = request(&a, method, &path, "", body.to_string()).await;
                assert!(matches!(written.status, 200 | 201), "{path}: {}", written.text);
                let read = request(&b, "GET", &read.unwrap_or(path), &written.at_least(), "").await;
                assert_eq!(read.body.pointer(field), Some(&json!(said)), "{}", read.text);
            }
            let older = request(&a, "GET", &format!("{chat}/messages?limit=500"), "", "").await;
            assert_eq!(older.status, 200, "{}", older.text);
        }
    };
    futures_util::future::join_all((0..8).map(round)).await;
    let preloaded = request(&a, "POST", &format!("{contacts}/preload"), "", "{}").await;
    assert_eq!(preloaded.body["preloaded"], 20, "{}", preloaded.text);
    let history = request(&b, "GET", &format!("/api/v1/chats/{CHAT}/messages"), "", "").await;
    assert_eq!(history.body["messages"].as_array().map(Vec::len), Some(40));
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_transaction_pooler_a_write_waits_for_a_row_no_longer_than_without() {
    let server = PrivatePostgres::start().await;
    let direct = server.url("service");
    succeed(perto(&direct, "").arg("migrate"));
    let amounts = ["--companies", "2", "--users", "0", "--contacts", "0", "--messages", "0"];
    succeed(perto(&direct, "").arg("seed").args(amounts));
    let bouncer = PrivateBouncer::start(server.port, 4).await;
    let a = Served::start_on(&bouncer.url("service"), &redis_url(), "a", &["--prepared-statements", "false"]);
    let mut holder = PgConnection::connect(&direct).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    sqlx::query("update companies set name = 'held' where id = 1").execute(&mut *held).await.unwrap();
    let began = Instant::now();
    let rename = json!({ "name": "other" }).to_string();
    let imports = "/api/v1/companies/1/contacts/imports";
    let (write, upload) = tokio::join!(
        request(&a, "PATCH", "/api/v1/companies/1", "", &rename),
        request(&a, "POST", imports, "content-type: text/csv\r\n", "phone\n+351910000001\n")
    );
    for refused in [&write, &upload] {
        assert_eq!(refused.status, 503, "{}", refused.text);
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    held.rollback().await.unwrap();
    let again = request(&a, "PATCH", "/api/v1/companies/1", "", &rename).await;
    assert_eq!(again.status, 200, "{}", again.text);
}
