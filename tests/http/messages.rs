//! Message history over HTTP: any page is what SQL says, whether a window covers it or not.

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::command::{Served, seeded};
use crate::resources::CHAT;
use crate::service::request;
use crate::support::engines::redis_url;

/// The page by a plain statement.
async fn oracle(
    database: &str,
    limit: i64,
    from_date: Option<&str>,
    before: Option<i64>,
) -> (Vec<i64>, bool) {
    let mut connection = PgConnection::connect(database).await.unwrap();
    let sql = "select id from messages m where chat_id = $1::uuid and ($2::timestamptz is null or created_at >= $2::timestamptz) \
               and ($3::bigint is null or (created_at, id) < (select created_at, id from messages where id = $3)) \
               order by created_at desc, id desc";
    let query = sqlx::query_scalar(sql).bind(CHAT).bind(from_date).bind(before);
    let all: Vec<i64> = query.fetch_all(&mut connection).await.unwrap();
    let page: Vec<i64> = all.iter().copied().take(usize::try_from(limit).unwrap()).collect();
    let more = all.len() > page.len();
    (page, more)
}

fn ids(body: &Value) -> Vec<i64> {
    body["messages"].as_array().unwrap().iter().map(|message| message["id"].as_i64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_what_sql_says() {
    let database = seeded();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    // 320 more than the demo's twenty: several at one time, so that the order needs their numbers.
    let more = "insert into messages (chat_id, sender, body, created_at) select $1::uuid, 'user', 'é \"' || n, \
                timestamptz '2026-03-01' + make_interval(hours => n / 4) from generate_series(1, 320) n";
    sqlx::query(more).bind(CHAT).execute(&mut connection).await.unwrap();
    let a = Served::start_on(&database.url, &redis_url(), "a", &["--message-window", "100"]);
    let (all, _) = oracle(&database.url, 1_000, None, None).await;
    let mut tiers = std::collections::HashSet::new();
    for limit in [1, 7, 99, 100, 101, 340, 500] {
        for from_date in [
            None,
            Some("2026-03-04T01:00:00Z"),
            Some("2026-03-01"),
            Some("2027-01-01"),
            Some("2026-03-03T14:00:00%2B02:00"),
        ] {
            for before in
                [None, Some(all[0]), Some(all[98]), Some(all[99]), Some(all[150]), Some(all[339]), Some(1)]
            {
                let from = from_date.map_or(String::new(), |date| format!("&from_date={date}"));
                let to = before.map_or(String::new(), |id| format!("&before={id}"));
                let path = format!("/api/v1/chats/{CHAT}/messages?limit={limit}{from}{to}");
                let read = request(&a, "GET", &path, "", "").await;
                if before == Some(1) {
                    // Another chat's.
                    assert_eq!((read.status, &read.body["field"]), (404, &json!("before")), "{path}");
                    continue;
                }
                let date = from_date.map(|date| date.replace("%2B", "+"));
                let wanted = oracle(&database.url, limit, date.as_deref(), before).await;
                assert_eq!(
                    (ids(&read.body), read.body["more"].as_bool()),
                    (wanted.0, Some(wanted.1)),
                    "{path}"
                );
                let tag = read.header("etag").unwrap();
                let same = request(&a, "GET", &path, &format!("if-none-match: {tag}\r\n"), "").await;
                assert_eq!(same.status, 304, "{path}");
                tiers.insert(read.header("perto-tier").unwrap().to_owned());
            }
        }
    }
    assert!(tiers.contains("l1") && tiers.contains("load"), "{tiers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_begins_with_its_first_message_and_ends_with_its_row() {
    let database = seeded();
    let (a, b) = (Served::start(&database, "a"), Served::start(&database, "b"));
    let path = "/api/v1/chats/00000000-0000-4000-9000-00000000000a/messages";
    assert_eq!(request(&b, "GET", path, "", "").await.status, 404);
    let message = json!({ "sender": "contact", "body": "first\nof \"all\" 東京" });
    let made = request(&a, "POST", path, "perto-company: 3\r\n", message.to_string()).await;
    assert_eq!(made.status, 201, "{}", made.text);
    let read = request(&b, "GET", path, &made.at_least(), "").await;
    assert_eq!((&read.body["messages"][0], read.body["more"].as_bool()), (&made.body, Some(false)));
    let other = request(&a, "POST", path, "perto-company: 4\r\n", message.to_string()).await;
    assert_eq!(other.status, 404, "it belongs to who wrote first");
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let moved =
        sqlx::query("update chats set company_id = 4 where id = '00000000-0000-4000-9000-00000000000a'");
    assert!(moved.execute(&mut connection).await.is_err(), "a chat stays with its company");
    sqlx::query("delete from chats where id = '00000000-0000-4000-9000-00000000000a'")
        .execute(&mut connection)
        .await
        .unwrap();
    crate::support::wait::eventually("SQL by hand is seen", async || {
        request(&b, "GET", path, "", "").await.status == 404
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_result_expires_and_an_expired_one_is_none() {
    let database = seeded();
    let brief = ["--ttl-tool-result", "1500ms"];
    let (a, b) = (Served::start_on(&database.url, &redis_url(), "a", &brief), Served::start(&database, "b"));
    let path = format!("/api/v1/chats/{CHAT}/tool-results/search");
    let stored = request(&a, "PUT", &path, "", r#"{"kept":  "as it came", "n": 1e400}"#).await;
    assert_eq!(stored.status, 200, "{}", stored.text);
    assert!(stored.text.contains(r#""result":{"kept":  "as it came", "n": 1e400}"#), "{}", stored.text);
    let read = request(&b, "GET", &path, &stored.at_least(), "").await;
    assert_eq!((read.status, &read.text), (200, &stored.text));
    crate::support::wait::eventually("it expires", async || {
        request(&b, "GET", &path, "", "").await.status == 404
    })
    .await;
    assert_eq!(request(&a, "GET", &path, "", "").await.status, 404);
}
