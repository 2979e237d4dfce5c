//! Companies beside each other: what one asks for keeps no other waiting.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::command::{ADMIN_KEY, Served, key_of, seeded};
use crate::service::{Response, request};
use crate::support::wait::eventually;

fn bearer(key: &str) -> String {
    format!("authorization: Bearer {key}\r\n")
}

async fn rename(served: &Served, company: i64, key: &str) -> Response {
    let body = json!({ "name": "Other" }).to_string();
    request(served, "PATCH", &format!("/api/v1/companies/{company}"), key, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_company_whose_writes_wait_leaves_connections_to_the_others() {
    let database = seeded();
    let (greedy, modest) = (bearer(&key_of(&database, 2)), bearer(&key_of(&database, 3)));
    let a = Served::start_closed(&database, "a");
    assert_eq!(rename(&a, 3, &modest).await.status, 200);
    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    sqlx::query("update companies set name = 'held' where id = 2").execute(&mut *held).await.unwrap();
    let waiting = futures_util::future::join_all((0..40).map(|_| rename(&a, 2, &greedy)));
    let others = async {
        let mut watcher = PgConnection::connect(&database.url).await.unwrap();
        let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        eventually("it takes what it may", async || {
            sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut watcher).await.unwrap() == 4
        })
        .await;
        let began = Instant::now();
        for _ in 0..10 {
            assert_eq!(rename(&a, 3, &modest).await.status, 200);
        }
        let took = began.elapsed();
        let most: i64 = sqlx::query_scalar(waits).fetch_one(&mut watcher).await.unwrap();
        held.rollback().await.unwrap();
        (took, most)
    };
    let (waited, (took, most)) = tokio::join!(waiting, others);
    assert!(most <= 4, "{most}");
    assert!(took < Duration::from_secs(4), "{took:?}: shorter than a lock is waited for");
    assert!(waited.iter().any(|answer| answer.status == 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_contact_of_a_validation_counts_as_a_request() {
    let database = seeded();
    let a = Served::start_with(&database, "a", &["--admin-key", ADMIN_KEY, "--rate-limit", "20"]);
    let (greedy, modest) = (bearer(&key_of(&database, 2)), bearer(&key_of(&database, 3)));
    let many = |count: u32| {
        let contact = |n| json!({ "phone": format!("+3519123{n:05}") });
        serde_json::Value::from((0..count).map(contact).collect::<Vec<_>>()).to_string()
    };
    let validate = async |count| {
        request(&a, "POST", "/api/v1/companies/2/contacts/validate", &greedy, many(count)).await
    };
    assert_eq!(validate(20).await.status, 200);
    let mut refused = validate(20).await;
    for _ in 0..6 {
        if refused.status == 200 {
            refused = validate(20).await;
        }
    }
    assert_eq!(
        (refused.status, &refused.body["type"]),
        (429, &json!("urn:perto:problem:too-many-requests")),
        "{}",
        refused.text
    );
    assert!(refused.header("retry-after").is_some());
    assert_eq!(request(&a, "GET", "/api/v1/companies/3", &modest, "").await.status, 200);
    // What is more than may ever come at once is not refused for ever.
    eventually("it may again", async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        validate(1_000).await.status == 200
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chats_of_a_company_stay_in_l1_beside_one_that_reads_many_large_ones() {
    let database = seeded();
    let mut postgres = PgConnection::connect(&database.url).await.unwrap();
    let chats = "insert into chats (id, company_id) select ('00000000-0000-4000-9000-0000000' || 20000 + n)::uuid, 2 from generate_series(1, 24) n;
                 insert into chats (id, company_id) select ('00000000-0000-4000-9000-0000000' || 30000 + n)::uuid, 3 from generate_series(1, 24) n;
                 insert into messages (chat_id, sender, body)
                 select id, 'user', repeat('x', case company_id when 2 then 8000 else 100 end) from chats, generate_series(1, 100)
                 where id::text like '00000000-0000-4000-9000-%'";
    sqlx::raw_sql(chats).execute(&mut postgres).await.unwrap();
    let keys = [2, 3].map(|company| bearer(&key_of(&database, company)));
    let a =
        Served::start_with(&database, "a", &["--admin-key", ADMIN_KEY, "--l1-mib", "8", "--rate-limit", "0"]);
    // The tier that answers a chat of company 2 or 3.
    let tier = async |company: usize, chat: u32| {
        let path = format!("/api/v1/chats/00000000-0000-4000-9000-0000000{company}00{chat:02}/messages");
        let read = request(&a, "GET", &path, &keys[company - 2], "").await;
        assert_eq!(read.status, 200, "{}", read.text);
        read.header("perto-tier").unwrap().to_owned()
    };
    for chat in 1..=24 {
        tier(3, chat).await;
    }
    // 19 MB, asked for as often as it takes to be what is used most.
    for _ in 0..8 {
        for chat in 1..=24 {
            tier(2, chat).await;
        }
    }
    let mut missed = Vec::new();
    for chat in 1..=24 {
        if tier(3, chat).await != "l1" {
            missed.push(chat);
        }
    }
    assert!(missed.is_empty(), "{missed:?}");
    assert_eq!(tier(2, 24).await, "l1", "the newest of its own are kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_company_whose_uploads_wait_leaves_connections_to_the_others() {
    let database = seeded();
    let (greedy, modest) = (bearer(&key_of(&database, 2)), bearer(&key_of(&database, 3)));
    let arguments = [
        "--admin-key",
        ADMIN_KEY,
        "--imports-at-once",
        "0",
        "--imports-per-company",
        "100",
        "--rate-limit",
        "0",
    ];
    let a = Served::start_with(&database, "a", &arguments);
    let upload = async |company: i64, key: &str| {
        let headers = format!("{key}content-type: text/csv\r\n");
        let path = format!("/api/v1/companies/{company}/contacts/imports");
        request(&a, "POST", &path, &headers, "phone\n+351912345678\n").await
    };
    assert_eq!(upload(3, &modest).await.status, 202);
    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    sqlx::query("select from companies where id = 2 for update").execute(&mut *held).await.unwrap();
    let waiting = futures_util::future::join_all((0..40).map(|_| upload(2, &greedy)));
    let others = async {
        let mut watcher = PgConnection::connect(&database.url).await.unwrap();
        let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        eventually("it takes what it may", async || {
            sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut watcher).await.unwrap() >= 4
        })
        .await;
        let began = Instant::now();
        for _ in 0..3 {
            assert_eq!(upload(3, &modest).await.status, 202);
        }
        let took = began.elapsed();
        let most: i64 = sqlx::query_scalar(waits).fetch_one(&mut watcher).await.unwrap();
        held.rollback().await.unwrap();
        (took, most)
    };
    let (waited, (took, most)) = tokio::join!(waiting, others);
    assert!(most <= 4, "{most} connections wait for one company");
    assert!(took < Duration::from_secs(4), "{took:?}: shorter than a lock is waited for");
    assert!(waited.iter().any(|answer| answer.status == 202));
}
