//! Every resource through two instances: what is written on one is read on the other.

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::command::{Served, seeded};
use crate::service::{Response, request, two_instances};
use crate::support::wait::eventually;

pub(crate) const CHAT: &str = "00000000-0000-4000-8000-000000000001";
const ROUNDS: usize = 1_000;

/// How a resource is written in some round, and what a read shows of it.
struct Resource {
    name: &'static str,
    write: fn(usize) -> (&'static str, String, Value),
    read: fn() -> (&'static str, String, Value),
    shows: fn(&Value) -> Value,
    /// What it shows after the write of this round.
    wanted: fn(usize) -> Value,
}

fn contact(field: &str, round: usize) -> Value {
    json!({ field: format!("round {round}") })
}

const RESOURCES: [Resource; 7] = [
    Resource {
        name: "message",
        write: |round| {
            (
                "POST",
                format!("/api/v1/chats/{CHAT}/messages"),
                json!({ "sender": "user", "body": round.to_string() }),
            )
        },
        read: || ("GET", format!("/api/v1/chats/{CHAT}/messages?limit=1"), Value::Null),
        shows: |body| body["messages"][0]["body"].clone(),
        wanted: |round| json!(round.to_string()),
    },
    Resource {
        name: "company",
        write: |round| ("PATCH", "/api/v1/companies/3".to_owned(), contact("name", round)),
        read: || ("GET", "/api/v1/companies/3".to_owned(), Value::Null),
        shows: |body| body["name"].clone(),
        wanted: |round| json!(format!("round {round}")),
    },
    Resource {
        name: "user",
        write: |round| ("PATCH", "/api/v1/users/1".to_owned(), contact("name", round)),
        read: || ("GET", "/api/v1/users/1".to_owned(), Value::Null),
        shows: |body| body["name"].clone(),
        wanted: |round| json!(format!("round {round}")),
    },
    Resource {
        name: "contact",
        write: |round| ("PATCH", "/api/v1/companies/1/contacts/20".to_owned(), contact("name", round)),
        read: || ("GET", "/api/v1/companies/1/contacts/20".to_owned(), Value::Null),
        shows: |body| body["name"].clone(),
        wanted: |round| json!(format!("round {round}")),
    },
    Resource {
        name: "contact by phone",
        // The phone goes to and fro between two contacts' numbers: old and new are both invalidated.
        write: |round| {
            (
                "PATCH",
                "/api/v1/companies/1/contacts/40".to_owned(),
                json!({ "phone": format!("91200000{}", round % 2) }),
            )
        },
        read: || ("GET", "/api/v1/companies/1/contacts/by-phone/912000001".to_owned(), Value::Null),
        shows: |body| body["id"].clone(),
        wanted: |round| if round % 2 == 1 { json!(40) } else { Value::Null },
    },
    Resource {
        name: "validation",
        write: |round| {
            (
                "PATCH",
                "/api/v1/companies/1/contacts/60".to_owned(),
                json!({ "phone": format!("91300000{}", round % 2) }),
            )
        },
        read: || {
            ("POST", "/api/v1/companies/1/contacts/validate".to_owned(), json!([{ "phone": "913 000 001" }]))
        },
        shows: |body| body[0]["exists"].clone(),
        wanted: |round| json!(round % 2 == 1),
    },
    Resource {
        name: "tool result",
        write: |round| {
            ("PUT", format!("/api/v1/chats/{CHAT}/tool-results/weather"), json!({ "round": round }))
        },
        read: || ("GET", format!("/api/v1/chats/{CHAT}/tool-results/weather"), Value::Null),
        shows: |body| body["result"]["round"].clone(),
        wanted: |round| json!(round),
    },
];

async fn send(served: &Served, (method, path, body): (&str, String, Value), headers: &str) -> Response {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    request(served, method, &path, headers, body).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_on_one_instance_is_read_on_the_other_by_its_token() {
    let (_database, a, b) = two_instances();
    let through = async |resource: &Resource| {
        for round in 0..ROUNDS {
            let written = send(&a, (resource.write)(round), "").await;
            assert!(matches!(written.status, 200 | 201), "{}: {}", resource.name, written.text);
            let read = send(&b, (resource.read)(), &written.at_least()).await;
            assert!(matches!(read.status, 200 | 404), "{}: {}", resource.name, read.text);
            let shown = (resource.shows)(&read.body);
            assert_eq!(shown, (resource.wanted)(round), "{}, round {round}: {}", resource.name, read.text);
            if read.status == 200 {
                assert_eq!(read.header("perto-freshness"), Some("fresh"), "{}", resource.name);
            }
        }
    };
    futures_util::future::join_all(RESOURCES.iter().map(through)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_again_comes_from_l1_and_not_at_all_where_the_client_has_it() {
    let (_database, a, _b) = two_instances();
    send(&a, ("PUT", format!("/api/v1/chats/{CHAT}/tool-results/weather"), json!([1])), "").await;
    for resource in RESOURCES.iter().filter(|resource| (resource.read)().0 == "GET") {
        send(&a, (resource.write)(1), "").await;
        let first = send(&a, (resource.read)(), "").await;
        let again = send(&a, (resource.read)(), "").await;
        assert_eq!((again.header("perto-tier"), &again.body), (Some("l1"), &first.body), "{}", resource.name);
        assert_eq!(again.header("cache-control"), Some("private, no-cache"), "{}", resource.name);
        let tag = again.header("etag").unwrap();
        for known in [tag.to_owned(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
            let same = send(&a, (resource.read)(), &format!("if-none-match: {known}\r\n")).await;
            assert_eq!((same.status, same.text.as_str()), (304, ""), "{}, {known}", resource.name);
            assert_eq!(
                (same.header("etag"), same.header("perto-tier")),
                (Some(tag), Some("l1")),
                "{}",
                resource.name
            );
        }
        if resource.name == "contact by phone" {
            continue; // What its next write shows is nothing.
        }
        // After a write the tag is another one.
        let written = send(&a, (resource.write)(3), "").await;
        let headers = format!("if-none-match: {tag}\r\n{}", written.at_least());
        let changed = send(&a, (resource.read)(), &headers).await;
        assert_eq!(changed.status, 200, "{}", resource.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contacts_are_made_changed_found_by_phone_and_deleted() {
    let (_database, a, b) = two_instances();
    let new = json!({ "phone": "912 345 678", "name": " Ana ", "email": "ana@example.com" });
    let made = send(&a, ("POST", "/api/v1/companies/1/contacts".to_owned(), new.clone()), "").await;
    assert_eq!(
        (made.status, &made.body["phone"], &made.body["name"]),
        (201, &json!("+351912345678"), &json!("Ana"))
    );
    let path = made.header("location").unwrap().to_owned();
    assert_eq!(request(&b, "GET", &path, &made.at_least(), "").await.body, made.body);
    let again = send(&b, ("POST", "/api/v1/companies/1/contacts".to_owned(), new), "").await;
    assert_eq!((again.status, &again.body["field"]), (409, &json!("phone")));
    let change = json!({ "email": null, "phone": "+1 212 555 2368" });
    let changed = send(&b, ("PATCH", path.clone(), change), "").await;
    assert_eq!((&changed.body["email"], &changed.body["name"]), (&Value::Null, &json!("Ana")));
    let by_phone =
        |phone: &str| ("GET", format!("/api/v1/companies/1/contacts/by-phone/{phone}"), Value::Null);
    let token = changed.at_least();
    assert_eq!(send(&a, by_phone("912345678"), &token).await.status, 404);
    assert_eq!(send(&a, by_phone("%2B12125552368"), &token).await.body, changed.body);
    assert_eq!(send(&a, by_phone("nobody"), "").await.body["field"], "phone");
    let gone = request(&a, "DELETE", &path, "", "").await;
    assert_eq!((gone.status, &gone.body["id"]), (200, &made.body["id"]));
    assert_eq!(request(&b, "GET", &path, &gone.at_least(), "").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_contacts_are_validated_in_one_call_and_preloaded_in_another() {
    let (_database, a, _b) = two_instances();
    let candidates: Vec<Value> = (0..1_000)
        .map(|n| match n % 4 {
            0 => json!({ "phone": format!("+35191{:07}", n * 5), "name": "Known, if it is one of ours" }),
            1 => json!({ "phone": "12", "email": "nobody" }),
            2 => json!({ "phone": format!("+35196{n:07}"), "email": format!("n{n}@example.com") }),
            _ => json!({ "phone": "+351912345678", "name": "x".repeat(2_000) }),
        })
        .collect();
    let path = "/api/v1/companies/1/contacts/validate".to_owned();
    let said = send(&a, ("POST", path.clone(), json!(candidates)), "").await;
    let said = said.body.as_array().unwrap();
    assert_eq!(said.len(), 1_000);
    for (n, said) in said.iter().enumerate() {
        let flaws: Vec<&str> =
            said["flaws"].as_array().unwrap().iter().map(|flaw| flaw["field"].as_str().unwrap()).collect();
        // Company 1 has every twentieth of 400 contacts, numbered like their phones.
        let number = n * 5;
        let (flawed, exists) = match n % 4 {
            0 => (vec![], number > 0 && number <= 400 && number % 20 == 0),
            1 => (vec!["phone", "email"], false),
            2 => (vec![], false),
            _ => (vec!["name"], false),
        };
        assert_eq!(
            (flaws, &said["valid"], &said["exists"]),
            (flawed.clone(), &json!(flawed.is_empty()), &json!(exists)),
            "{n}"
        );
        assert_eq!(said["contact"], if exists { json!(number) } else { Value::Null }, "{n}");
    }
    let one = send(&a, ("POST", path.clone(), json!({ "phone": "91 000 0020" })), "").await;
    assert_eq!(
        (&one.body["valid"], &one.body["contact"], &one.body["phone"]),
        (&json!(true), &json!(20), &json!("+351910000020"))
    );
    let preload =
        |limit: Value| send(&a, ("POST", "/api/v1/companies/2/contacts/preload".to_owned(), limit), "");
    assert_eq!(preload(json!({ "limit": 5 })).await.body, json!({ "preloaded": 5, "already": 0 }));
    assert_eq!(preload(json!({})).await.body, json!({ "preloaded": 20, "already": 5 }));
    let read = request(&a, "GET", "/api/v1/companies/2/contacts/1", "", "").await;
    assert_eq!(read.header("perto-tier"), Some("l1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_depends_on_a_company_is_as_new_as_its_token() {
    let database = seeded();
    // Without Redis, so that only the token tells the other one.
    let start = |name: &str| Served::start_on(&database.url, "", name, &[]);
    let (a, b) = (start("a"), start("b"));
    for round in 0..20 {
        let (region, number) = if round % 2 == 0 { ("US", "+12125552368") } else { ("DE", "+492125552368") };
        let written =
            send(&a, ("PATCH", "/api/v1/companies/5".to_owned(), json!({ "region": region })), "").await;
        let validate =
            ("POST", "/api/v1/companies/5/contacts/validate".to_owned(), json!({ "phone": "212 555 2368" }));
        let said = send(&b, validate, &written.at_least()).await;
        let shown = said.body["phone"].as_str().unwrap_or("none");
        assert!(
            shown == number || region == "DE" && shown == "none",
            "round {round}, {region}: {}",
            said.text
        );
        let made =
            send(&a, ("POST", "/api/v1/companies".to_owned(), json!({ "name": "New", "region": "PT" })), "")
                .await;
        let path = format!("/api/v1/companies/{}/contacts/by-phone/912345678", made.body["id"]);
        let none = request(&b, "GET", &path, &made.at_least(), "").await;
        assert!(none.text.contains("contact"), "the company is there: {}", none.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tool_results_that_expired_an_hour_ago_are_deleted() {
    let database = seeded();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let insert = "insert into tool_results (chat_id, tool, result, expires_at)
        select $1::uuid, 't' || n, '1', now() - interval '1 minute' * n from generate_series(1, 1100) n";
    sqlx::query(insert).bind(CHAT).execute(&mut connection).await.unwrap();
    let _a = Served::start(&database, "a");
    eventually("those of the last hour are left", async || {
        let left: i64 =
            sqlx::query_scalar("select count(*) from tool_results").fetch_one(&mut connection).await.unwrap();
        left <= 59
    })
    .await;
    let whole: i64 = sqlx::query_scalar(
        "select count(*) from perto.invalidation where cache = 'tool_result' and keys is null",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(whole, 0, "the cache was cleared");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_time_is_written_by_hand_that_cannot_be_read() {
    let database = seeded();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    for sql in [
        "update messages set created_at = 'infinity' where id = 1",
        "update messages set created_at = '-infinity' where id = 1",
        "update messages set created_at = '20000-01-01' where id = 1",
        "insert into tool_results (chat_id, tool, result, expires_at) select id, 't', '1', 'infinity' from chats limit 1",
    ] {
        let error = sqlx::query(sql).execute(&mut connection).await.unwrap_err();
        assert_eq!(error.as_database_error().unwrap().code().as_deref(), Some("23514"), "{sql}: {error}");
    }
}
