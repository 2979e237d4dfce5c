//! Who may do what: keys, tenants, admins, rates.

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::command::{ADMIN_KEY, Database, Served, key_of, perto, seeded, succeed};
use crate::resources::CHAT;
use crate::service::{answer, request};
use crate::support::engines::redis_url;
use crate::support::wait::eventually;

fn bearer(key: &str) -> String {
    format!("authorization: Bearer {key}\r\n")
}

/// Every route of one tenant, with what would be right for company 2, which the first chat belongs to.
fn routes() -> Vec<(&'static str, String, Value)> {
    let (chat, contacts) = (format!("/api/v1/chats/{CHAT}"), "/api/v1/companies/2/contacts".to_owned());
    vec![
        ("GET", format!("{chat}/messages"), Value::Null),
        ("POST", format!("{chat}/messages"), json!({ "sender": "user", "body": "hello" })),
        ("PUT", format!("{chat}/tool-results/weather"), json!({ "t": 1 })),
        ("GET", format!("{chat}/tool-results/weather"), Value::Null),
        ("GET", "/api/v1/companies/2".to_owned(), Value::Null),
        ("PATCH", "/api/v1/companies/2".to_owned(), json!({ "name": "Mine" })),
        ("GET", "/api/v1/users/1".to_owned(), Value::Null),
        ("PATCH", "/api/v1/users/1".to_owned(), json!({ "name": "Mine" })),
        ("DELETE", "/api/v1/users/1".to_owned(), Value::Null),
        ("POST", contacts.clone(), json!({ "phone": "+12125552368" })),
        ("GET", format!("{contacts}/1"), Value::Null),
        ("PATCH", format!("{contacts}/1"), json!({ "name": "Mine" })),
        ("GET", format!("{contacts}/by-phone/%2B12122000001"), Value::Null),
        ("POST", format!("{contacts}/validate"), json!({ "phone": "+12125552368" })),
        ("POST", format!("{contacts}/preload"), json!({})),
        ("DELETE", format!("{contacts}/1"), Value::Null),
    ]
}

fn text(body: &Value) -> String {
    if body.is_null() { String::new() } else { body.to_string() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_another_tenant_is_not_there_by_any_route() {
    let database = seeded();
    let a = Served::start_closed(&database, "a");
    let (stranger, owner) = (bearer(&key_of(&database, 1)), bearer(&key_of(&database, 2)));
    let before = request(&a, "GET", &format!("/api/v1/chats/{CHAT}/messages"), &owner, "").await;
    for (method, path, body) in routes() {
        let refused = request(&a, method, &path, &stranger, text(&body)).await;
        assert_eq!(
            (refused.status, &refused.body["type"]),
            (404, &json!("urn:perto:problem:not-found")),
            "{method} {path}"
        );
    }
    let after = request(&a, "GET", &format!("/api/v1/chats/{CHAT}/messages"), &owner, "").await;
    assert_eq!(before.body, after.body, "nothing was written");
    // The same requests are right for the owner.
    for (method, path, body) in routes() {
        let done = request(&a, method, &path, &owner, text(&body)).await;
        assert!(matches!(done.status, 200 | 201), "{method} {path}: {}", done.text);
    }
    // Nor does another's id help under one's own company.
    let crossed = request(&a, "GET", "/api/v1/companies/1/contacts/21", &stranger, "").await;
    assert_eq!(crossed.status, 404);
    let own = request(
        &a,
        "POST",
        "/api/v1/users",
        &stranger,
        json!({ "name": "N", "email": "n@example.com" }).to_string(),
    )
    .await;
    assert_eq!((own.status, &own.body["company"]), (201, &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_nothing_is_answered_and_without_the_admins_nothing_is_administered() {
    let database = seeded();
    let a = Served::start_closed(&database, "a");
    let tenant = bearer(&key_of(&database, 2));
    let administration = [
        ("POST", "/api/v1/companies", json!({ "name": "New", "region": "PT" })),
        ("DELETE", "/api/v1/companies/19", Value::Null),
        ("GET", "/api/v1/cache/company/entries/1", Value::Null),
        ("DELETE", "/api/v1/cache/company/1", Value::Null),
        ("DELETE", "/api/v1/cache/company", Value::Null),
        ("GET", "/api/v1/cache/metrics", Value::Null),
        ("DELETE", "/api/v1/cache/metrics", Value::Null),
        ("GET", "/api/v1/cache/alerts", Value::Null),
        ("GET", "/api/v1/cache/instances", Value::Null),
    ];
    let all = routes()
        .into_iter()
        .chain(administration.clone().map(|(method, path, body)| (method, path.to_owned(), body)));
    let unknown = format!("perto_{}", "0".repeat(64));
    for (method, path, body) in all {
        for headers in [
            "".to_owned(),
            "authorization: Basic eDp5\r\n".to_owned(),
            bearer("x"),
            bearer(&unknown),
            "authorization: \u{e9}\r\n".to_owned(),
        ] {
            let refused = request(&a, method, &path, &headers, text(&body)).await;
            assert_eq!(
                (refused.status, refused.header("www-authenticate")),
                (401, Some("bearer")),
                "{method} {path} {headers}"
            );
            assert!(!refused.text.contains(&unknown), "{}", refused.text);
        }
    }
    for (method, path, body) in &administration {
        let refused = request(&a, method, path, &tenant, text(body)).await;
        assert_eq!(refused.status, 403, "{method} {path}: {}", refused.text);
    }
    let admin = bearer(ADMIN_KEY);
    for (method, path, body) in &administration {
        let done = request(&a, method, path, &admin, text(body)).await;
        assert!(matches!(done.status, 200 | 201 | 204), "{method} {path}: {}", done.text);
    }
    // An admin may act for one company, and must say which where something is made.
    let user = json!({ "name": "N", "email": "n@example.com" }).to_string();
    assert_eq!(request(&a, "POST", "/api/v1/users", &admin, &user).await.body["field"], "perto-company");
    let made = request(&a, "POST", "/api/v1/users", &format!("{admin}perto-company: 4\r\n"), &user).await;
    assert_eq!((made.status, &made.body["company"]), (201, &json!(4)));
    let other = request(&a, "GET", "/api/v1/companies/2", &format!("{admin}perto-company: 4\r\n"), "").await;
    assert_eq!(other.status, 404);
    for path in ["/livez", "/readyz", "/openapi.json", "/docs/", "/"] {
        assert_eq!(request(&a, "GET", path, "", "").await.status, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_refused_on_every_instance_while_it_is_in_use() {
    let database = seeded();
    let (a, b) = (Served::start_closed(&database, "a"), Served::start_closed(&database, "b"));
    let (key, other) = (bearer(&key_of(&database, 2)), bearer(&key_of(&database, 2)));
    for served in [&a, &b] {
        for _ in 0..20 {
            assert_eq!(request(served, "GET", "/api/v1/companies/2", &key, "").await.status, 200);
        }
    }
    let list =
        String::from_utf8(succeed(perto(&database.url, "").args(["keys", "list", "--company", "2"])).stdout)
            .unwrap();
    assert_eq!(list.lines().count(), 3, "{list}");
    assert!(!list.contains("perto_"), "{list}");
    let revoked = std::time::Instant::now();
    succeed(perto(&database.url, "").args(["keys", "revoke", "1"]));
    for served in [&a, &b] {
        eventually("the key is refused", async || {
            request(served, "GET", "/api/v1/companies/2", &key, "").await.status == 401
        })
        .await;
    }
    // The command's own time counts too: it is no writer of the service's.
    assert!(revoked.elapsed() < std::time::Duration::from_secs(3), "{:?}", revoked.elapsed());
    for served in [&a, &b] {
        assert_eq!(request(served, "GET", "/api/v1/companies/2", &other, "").await.status, 200);
        assert_eq!(request(served, "GET", "/api/v1/companies/2", &key, "").await.status, 401);
    }
    let list = String::from_utf8(succeed(perto(&database.url, "").args(["keys", "list"])).stdout).unwrap();
    assert!(list.lines().nth(1).unwrap().contains("T") && list.contains("REVOKED"), "{list}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_that_asks_too_much_is_told_when_to_come_back_and_others_are_served() {
    let database = seeded();
    let limit = ["--admin-key", ADMIN_KEY, "--rate-limit", "5"];
    let a = Served::start_on(&database.url, &redis_url(), "a", &limit);
    let (greedy, modest) = (bearer(&key_of(&database, 2)), bearer(&key_of(&database, 3)));
    let mut refused = 0;
    for _ in 0..40 {
        let response = request(&a, "GET", "/api/v1/companies/2", &greedy, "").await;
        if response.status == 429 {
            assert!(response.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
            assert_eq!(response.body["type"], "urn:perto:problem:too-many-requests");
            refused += 1;
        }
    }
    assert!((20..=30).contains(&refused), "{refused} of 40 were refused");
    assert_eq!(request(&a, "GET", "/api/v1/companies/3", &modest, "").await.status, 200);
    assert_eq!(request(&a, "GET", "/api/v1/companies/2", &bearer(ADMIN_KEY), "").await.status, 200);
}

#[test]
fn without_an_admin_key_it_listens_on_this_machine_only_and_a_short_one_is_refused() {
    let database = Database::new();
    succeed(perto(&database.url, &redis_url()).arg("migrate"));
    for (arguments, names) in [
        (["--listen", "0.0.0.0:0", "--admin-key", ""], "--listen"),
        (["--listen", "127.0.0.1:0", "--admin-key", "s3cret"], "PERTO_ADMIN_KEY"),
    ] {
        let output = perto(&database.url, &redis_url()).arg("serve").args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(names) && !said.contains("s3cret"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_service_answers_pages_of_this_machine_only_and_closes_with_the_first_key() {
    let database = seeded();
    let a = Served::start(&database, "a");
    let ask = async |head: &str| {
        let request = format!("GET /api/v1/companies/1 HTTP/1.1\r\nconnection: close\r\n{head}\r\n");
        answer(&a, request.as_bytes()).await
    };
    for host in ["localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "[::1]", "LOCALHOST"] {
        assert_eq!(ask(&format!("host: {host}\r\n")).await.status, 200, "{host}");
        assert_eq!(ask(&format!("host: {host}\r\norigin: http://{host}\r\n")).await.status, 200, "{host}");
    }
    for (head, field) in [
        ("host: evil.example\r\norigin: http://evil.example\r\n", "host"),
        ("host: 10.0.0.1\r\n", "host"),
        ("host: localhost.evil.example\r\n", "host"),
        ("host: localhost:8080\r\norigin: https://evil.example\r\n", "origin"),
        ("host: localhost:8080\r\norigin: null\r\n", "origin"),
    ] {
        let refused = ask(head).await;
        assert_eq!(
            (refused.status, &refused.body["field"]),
            (403, &json!(field)),
            "{head}: {}",
            refused.text
        );
    }
    let key = bearer(&key_of(&database, 1));
    eventually("it is closed", async || ask("host: localhost\r\n").await.status == 401).await;
    assert_eq!(ask(&format!("host: any.example\r\n{key}")).await.status, 200);
    succeed(perto(&database.url, "").args(["keys", "revoke", "1"]));
    let b = Served::start(&database, "b");
    let refused = request(&b, "GET", "/api/v1/companies/1", "", "").await;
    assert_eq!(refused.status, 401, "to revoke the last key opens nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_in_use_are_no_guesses_where_l1_cannot_vouch_for_them() {
    let database = seeded();
    let a = Served::start_with(&database, "a", &["--admin-key", ADMIN_KEY, "--rate-limit", "0"]);
    let key = bearer(&key_of(&database, 2));
    assert_eq!(request(&a, "GET", "/api/v1/companies/2", &key, "").await.status, 200);
    // Nobody can read the log: L1 is served, and flagged.
    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    sqlx::query("lock table perto.invalidation").execute(&mut *held).await.unwrap();
    eventually("it is unverified", async || {
        request(&a, "GET", "/readyz", "", "").await.text.trim() == "unverified"
    })
    .await;
    for _ in 0..600 {
        let read = request(&a, "GET", "/api/v1/companies/2", &key, "").await;
        assert_eq!((read.status, read.header("perto-freshness")), (200, Some("unverified")), "{}", read.text);
    }
    held.rollback().await.unwrap();
    eventually("it is coherent", async || {
        request(&a, "GET", "/readyz", "", "").await.text.trim() == "coherent"
    })
    .await;
    // Where Postgres can't say which keys are in use, guesses are too many at some point.
    let mut held = holder.begin().await.unwrap();
    sqlx::query("lock table api_keys").execute(&mut *held).await.unwrap();
    let guess = async |n: u32| {
        let guess = bearer(&format!("perto_{n:064x}"));
        request(&a, "GET", "/api/v1/companies/2", &guess, "").await.status
    };
    let said = futures_util::future::join_all((0..450).map(guess)).await;
    assert!(said.contains(&429), "{said:?}");
    held.rollback().await.unwrap();
    assert_eq!(request(&a, "GET", "/api/v1/companies/2", &key, "").await.status, 200);
}

/// Guesses a key, again and again.
async fn guessing(served: &Served, from: u32, until: &std::sync::atomic::AtomicBool) -> u32 {
    let mut guesses = 0;
    while !until.load(std::sync::atomic::Ordering::Relaxed) {
        let guess = bearer(&format!("perto_{:064x}", from + guesses));
        let said = request(served, "GET", "/api/v1/companies/2", &guess, "").await;
        assert!(matches!(said.status, 401 | 429), "{}", said.text);
        guesses += 1;
    }
    guesses
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_keep_nobody_out_of_a_new_instance_whose_key_is_right() {
    let database = seeded();
    let keys: Vec<String> = (2..8).map(|company| bearer(&key_of(&database, company))).collect();
    let a = Served::start_closed(&database, "a");
    let until = std::sync::atomic::AtomicBool::new(false);
    let guesses = futures_util::future::join_all((0..64).map(|n| guessing(&a, n << 16, &until)));
    let right = async {
        for (key, company) in keys.iter().zip(2..) {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            let read = request(&a, "GET", &format!("/api/v1/companies/{company}"), key, "").await;
            assert_eq!(read.status, 200, "{}", read.text);
        }
        until.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (guesses, ()) = tokio::join!(guesses, right);
    assert!(guesses.iter().sum::<u32>() > 400, "{guesses:?}");
    // What is no key is remembered nowhere.
    let metrics = request(&a, "GET", "/metrics", "", "").await.text;
    let entries =
        metrics.lines().find_map(|line| line.strip_prefix("perto_l1_entries{perto_cache=\"api_key\"} "));
    assert!(entries.unwrap().parse::<u32>().unwrap() <= 6, "{entries:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_admin_who_acts_for_one_company_deletes_no_other() {
    let database = seeded();
    let a = Served::start_closed(&database, "a");
    let acting = format!("{}perto-company: 2\r\n", bearer(ADMIN_KEY));
    assert_eq!(request(&a, "DELETE", "/api/v1/companies/3", &acting, "").await.status, 404);
    assert_eq!(request(&a, "GET", "/api/v1/companies/3", &bearer(ADMIN_KEY), "").await.status, 200);
    assert_eq!(request(&a, "DELETE", "/api/v1/companies/2", &acting, "").await.status, 200);
}
