//! Tiers put aside over HTTP and by the command: who may, what is refused, and where it shows.

use serde_json::{Value, json};

use crate::command::{ADMIN_KEY, Database, Served, key_of, perto, seeded, succeed};
use crate::service::{Response, request, two_instances};
use crate::support::engines::redis_url;
use crate::support::wait::eventually;

const AT: &str = "/api/v1/cache/switches";

async fn put(served: &Served, path: &str, body: &Value) -> Response {
    request(served, "PUT", &format!("{AT}/{path}"), "", body.to_string()).await
}

async fn tier(served: &Served, company: u32) -> String {
    let path = format!("/api/v1/companies/{company}");
    request(served, "GET", &path, "", "").await.header("perto-tier").unwrap().to_owned()
}

async fn command(database: &Database, arguments: &[&str]) -> String {
    let mut command = perto(&database.url, &redis_url());
    command.args(arguments);
    let output = tokio::task::spawn_blocking(move || succeed(&mut command)).await.unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tier_is_put_aside_on_every_instance_and_shows_everywhere() {
    let (database, a, b) = two_instances();
    assert_eq!(request(&a, "GET", AT, "", "").await.body, json!({ "switches": [] }));
    for served in [&a, &b] {
        tier(served, 1).await;
        assert_eq!(tier(served, 1).await, "l1");
    }
    let off = json!({ "mode": "off", "reason": "an incident", "by": "ana", "seconds": 600 });
    let done = put(&a, "company/l1", &off).await;
    assert_eq!(done.status, 200, "{}", done.text);
    let told = &done.body["switches"][0];
    assert_eq!(
        (&told["cache"], &told["tier"], &told["mode"]),
        (&json!("company"), &json!("l1"), &json!("off"))
    );
    assert!(told["until"].is_string() && told["reason"] == "an incident" && told["by"] == "ana", "{told}");
    assert_ne!(tier(&a, 1).await, "l1", "it obeys when it answers");
    eventually("the other one obeys", async || tier(&b, 1).await != "l1").await;
    assert_eq!(tier(&b, 1).await, "l2");
    let both = put(&b, "*/l2", &json!({ "mode": "off" })).await;
    assert_eq!(both.body["switches"].as_array().unwrap().len(), 2, "{}", both.text);
    assert_eq!((tier(&b, 1).await, tier(&b, 1).await), ("load".to_owned(), "load".to_owned()));

    let alert = async |served: &Served| {
        let alerts = request(served, "GET", "/api/v1/cache/alerts", "", "").await.body["alerts"].clone();
        let alerts = alerts.as_array().cloned().unwrap_or_default();
        alerts.into_iter().find(|alert| alert["name"] == "switched").map(|alert| alert["detail"].clone())
    };
    eventually("there is an alert", async || alert(&b).await.is_some()).await;
    let detail = alert(&b).await.unwrap().to_string();
    assert!(detail.contains("cache company: l1 is off") && detail.contains("an incident"), "{detail}");
    let metrics = request(&b, "GET", "/metrics", "", "").await.text;
    assert!(metrics.contains("perto_troubles{perto_kind=\"switched\"} 2"), "{metrics}");
    let shown = command(&database, &["switch"]).await;
    assert!(
        shown.contains("company l1 off") && shown.contains("ana an incident") && shown.contains("* l2 off"),
        "{shown}"
    );
    let doctor = command(&database, &["doctor"]).await;
    assert!(
        doctor.contains("of cache company l1 is off") && doctor.contains("switch company l1 on"),
        "{doctor}"
    );
    let inspect =
        command(&database, &["inspect", "company", "1", "--instance", &format!("http://{}", a.address)])
            .await;
    assert!(
        inspect.contains("SWITCHED: Of the cache l1 is off") && inspect.contains("L1 switched off"),
        "{inspect}"
    );

    for path in ["company/l1", "*/l2"] {
        assert_eq!(request(&a, "DELETE", &format!("{AT}/{path}"), "", "").await.status, 200);
    }
    for served in [&a, &b] {
        eventually("L1 is used again", async || tier(served, 1).await == "l1").await;
        assert_eq!(request(served, "GET", AT, "", "").await.body, json!({ "switches": [] }));
        eventually("the alert is over", async || alert(served).await.is_none()).await;
    }
}

/// For whoever wonders why answers are slow: without a look at what is switched.
#[tokio::test(flavor = "multi_thread")]
async fn cache_status_tells_of_a_read_while_a_tier_is_put_aside() {
    let (_database, a, _b) = two_instances();
    let status = async |path: &str| {
        let read = request(&a, "GET", path, "", "").await;
        assert_eq!(read.status, 200, "{}", read.text);
        read.header("cache-status").unwrap().to_owned()
    };
    let company = "/api/v1/companies/1";
    status(company).await;
    assert_eq!(status(company).await, "perto; hit; detail=l1");
    put(&a, "company/l2", &json!({ "mode": "read-only" })).await;
    assert_eq!(status(company).await, r#"perto; hit; detail="l1, l2 read-only""#);
    put(&a, "company/l1", &json!({ "mode": "off" })).await;
    assert_eq!(status(company).await, r#"perto; hit; detail="l2, l1 off, l2 read-only""#);
    put(&a, "company/l2", &json!({ "mode": "on" })).await;
    assert_eq!(status(company).await, r#"perto; hit; detail="l2, l1 off""#);
    put(&a, "*/l2", &json!({ "mode": "off" })).await;
    assert_eq!(status(company).await, r#"perto; fwd=bypass; detail="l1 off, l2 off""#);
    // Of another cache only what concerns it.
    assert_eq!(status("/api/v1/users/1").await, r#"perto; fwd=uri-miss; detail="l2 off""#);
    assert_eq!(status("/api/v1/users/1").await, r#"perto; hit; detail="l1, l2 off""#);
    let verdict =
        request(&a, "POST", "/api/v1/companies/1/contacts/validate", "", r#"{ "phone": "912345678" }"#);
    let verdict = verdict.await;
    let told = verdict.header("cache-status").map(str::to_owned);
    assert!(told.is_some_and(|told| told.ends_with(r#"l2 off""#)), "{}", verdict.text);
    for path in ["company/l1", "*/l2"] {
        assert_eq!(request(&a, "DELETE", &format!("{AT}/{path}"), "", "").await.status, 200);
    }
    assert!(!status(company).await.contains("off"));
    assert_eq!(status(company).await, "perto; hit; detail=l1");
}

/// Neither a tenant's key nor none.
#[tokio::test(flavor = "multi_thread")]
async fn only_an_admin_switches_or_sees_what_is_switched() {
    let database = seeded();
    let a = Served::start_closed(&database, "a");
    let tenant = format!("authorization: Bearer {}\r\n", key_of(&database, 1));
    let admin = format!("authorization: Bearer {ADMIN_KEY}\r\n");
    let path = format!("{AT}/company/l1");
    let off = json!({ "mode": "off" }).to_string();
    for (who, status) in [("", 401), (&*tenant, 403)] {
        for (method, path, body) in [("GET", AT, ""), ("PUT", &*path, &*off), ("DELETE", &*path, "")] {
            let refused = request(&a, method, path, who, body).await;
            assert_eq!(refused.status, status, "{method} {path}: {}", refused.text);
        }
    }
    request(&a, "DELETE", &path, &admin, "").await;
    assert_eq!(request(&a, "GET", AT, &admin, "").await.body, json!({ "switches": [] }));
    assert_eq!(request(&a, "PUT", &path, &admin, off).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_with_what_would() {
    let (_database, a, _) = two_instances();
    let off = json!({ "mode": "off" });
    for (path, body, status, says) in [
        ("compny/l1", &off, 404, "there are: "),
        ("contacts_of_company/l1", &off, 404, "there are: "),
        ("company/l3", &off, 422, "neither l1 nor l2"),
        ("company/load", &off, 422, "neither l1 nor l2"),
        ("company/l1", &json!({ "mode": "aus" }), 422, "read-only"),
        ("company/l1", &json!({ "mode": "on", "seconds": 60 }), 422, "no end"),
        ("company/l1", &json!({ "mode": "off", "seconds": 0 }), 422, "one second"),
        ("company/l1", &json!({ "mode": "off", "reason": "a\nb" }), 422, "one line"),
        ("company/l1", &json!({ "mode": "off", "reason": "x".repeat(401) }), 422, "400 bytes"),
        ("company/l1", &json!({ "mode": "off", "why": "x" }), 422, "why"),
        ("a%20b/l1", &off, 422, "not a name"),
    ] {
        let refused = put(&a, path, body).await;
        assert_eq!(refused.status, status, "{path} {body}: {}", refused.text);
        assert_eq!(refused.header("content-type"), Some("application/problem+json"));
        assert!(refused.body["detail"].as_str().unwrap().contains(says), "{path} {body}: {}", refused.text);
    }
    assert_eq!(request(&a, "GET", AT, "", "").await.body, json!({ "switches": [] }));
}
