//! Bad input over HTTP: a problem that names the field, and nothing written.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::resources::CHAT;
use crate::service::{answer, request, two_instances};
use crate::support::wait::ends;

/// Method, path, headers and body; the status, and the field that is named.
type Case<'a> = (&'a str, String, &'a str, &'a [u8], u16, &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_is_a_problem_that_names_the_field_and_writes_nothing() {
    let (_database, a, _b) = two_instances();
    let (messages, tool) =
        (format!("/api/v1/chats/{CHAT}/messages"), format!("/api/v1/chats/{CHAT}/tool-results/w"));
    let page = |query: &str| format!("{messages}?{query}");
    let contacts = "/api/v1/companies/1/contacts";
    let (bad_utf8, long): (&[u8], _) =
        (b"{\"name\": \"\xff\"}", json!({ "name": "x".repeat(201) }).to_string());
    let deep = "[".repeat(100_000);
    let nested = format!("{}1{}", "[".repeat(20_000), "]".repeat(20_000));
    let many = json!(vec![json!({ "phone": "1" }); 1_001]).to_string();
    let before = request(&a, "GET", &messages, "", "").await.body;
    let cases: Vec<Case<'_>> = vec![
        ("GET", "/api/v1/companies/x".into(), "", b"", 400, "id"),
        ("GET", "/api/v1/companies/99999999999999999999".into(), "", b"", 400, "id"),
        ("GET", "/api/v1/companies/%FF".into(), "", b"", 400, "id"),
        ("GET", "/api/v1/companies/0".into(), "", b"", 404, ""),
        ("GET", "/api/v1/users/0".into(), "", b"", 404, ""),
        ("GET", "/api/v1/nothing".into(), "", b"", 404, ""),
        ("PUT", "/api/v1/companies/1".into(), "", b"", 405, ""),
        ("GET", "/api/v1/companies/1".into(), "perto-at-least: nonsense\r\n", b"", 400, "perto-at-least"),
        ("GET", "/api/v1/companies/1".into(), "perto-at-least: -\r\n", b"", 400, "perto-at-least"),
        ("GET", "/api/v1/companies/1".into(), "perto-at-least: 1-r\r\n", b"", 400, "perto-at-least"),
        ("GET", "/api/v1/companies/1".into(), "perto-at-least: 1-1, 1-2\r\n", b"", 400, "perto-at-least"),
        ("GET", "/api/v1/companies/1".into(), "perto-read: soon\r\n", b"", 400, "perto-read"),
        ("GET", "/api/v1/companies/1".into(), "perto-read: within=100\r\n", b"", 400, "perto-read"),
        ("GET", "/api/v1/companies/1".into(), "perto-read: within=-1ms\r\n", b"", 400, "perto-read"),
        ("GET", "/api/v1/companies/1".into(), "perto-read: within=3600001ms\r\n", b"", 400, "perto-read"),
        ("GET", "/api/v1/companies/1/inbox".into(), "perto-read: \r\n", b"", 400, "perto-read"),
        ("GET", "/api/v1/companies/1/overview".into(), "perto-read: within\r\n", b"", 400, "perto-read"),
        (
            "GET",
            "/api/v1/companies/1/contacts".into(),
            "perto-read: latest\r\nperto-read: within=1ms\r\n",
            b"",
            400,
            "perto-read",
        ),
        ("GET", "/api/v1/companies/1".into(), "perto-company: x\r\n", b"", 400, "perto-company"),
        ("PATCH", "/api/v1/companies/1".into(), "", b"{", 400, "body"),
        ("PATCH", "/api/v1/companies/1".into(), "", b"", 400, "body"),
        ("PATCH", "/api/v1/companies/1".into(), "", b"{} {}", 400, "body"),
        ("PATCH", "/api/v1/companies/1".into(), "", bad_utf8, 400, "name"),
        ("PATCH", "/api/v1/companies/1".into(), "", br#"{"nme": "x"}"#, 422, "nme"),
        ("PATCH", "/api/v1/companies/1".into(), "", long.as_bytes(), 422, "name"),
        ("PATCH", "/api/v1/companies/1".into(), "", br#"{"name": "a\u0000b"}"#, 422, "name"),
        ("PATCH", "/api/v1/companies/1".into(), "", br#"{"name": 7}"#, 422, "name"),
        ("PATCH", "/api/v1/companies/1".into(), "", br#"["New", null]"#, 422, "body"),
        ("PATCH", "/api/v1/companies/1".into(), "", b"[", 400, "body"),
        ("PATCH", "/api/v1/companies/1".into(), "", b"7", 422, "body"),
        ("POST", format!("{contacts}/validate"), "", br#"[["1", null, null]]"#, 422, "[0]"),
        ("PATCH", "/api/v1/companies/1".into(), "", br#"{"region": "Portugal"}"#, 422, "region"),
        ("PATCH", "/api/v1/companies/1".into(), "content-type: text/plain\r\n", b"{}", 415, "content-type"),
        ("PATCH", "/api/v1/companies/0".into(), "", br#"{"region": "PT"}"#, 404, ""),
        ("POST", "/api/v1/companies".into(), "", br#"{"name": "x"}"#, 422, "region"),
        (
            "POST",
            "/api/v1/users".into(),
            "perto-company: 1\r\n",
            br#"{"name": "x", "email": "x"}"#,
            422,
            "email",
        ),
        (
            "POST",
            "/api/v1/users".into(),
            "perto-company: 1\r\n",
            br#"{"name": "x", "email": "x@y.zz", "role": "king"}"#,
            422,
            "role",
        ),
        (
            "POST",
            "/api/v1/users".into(),
            "perto-company: 999\r\n",
            br#"{"name": "x", "email": "x@y.zz"}"#,
            404,
            "company",
        ),
        (
            "POST",
            "/api/v1/users".into(),
            "perto-company: 2\r\n",
            br#"{"name": "x", "email": "user1@example.com"}"#,
            409,
            "email",
        ),
        ("GET", page("limit=0"), "", b"", 400, "limit"),
        ("GET", page("limit=501"), "", b"", 400, "limit"),
        ("GET", page("limit=-1"), "", b"", 400, "limit"),
        ("GET", page("limit="), "", b"", 400, "limit"),
        ("GET", page("limit=1&limit=2"), "", b"", 400, "limit"),
        ("GET", page("from_date=yesterday"), "", b"", 400, "from_date"),
        ("GET", page("from_date=2026-02-30"), "", b"", 400, "from_date"),
        ("GET", page("from_date=%FF%00"), "", b"", 400, "from_date"),
        ("GET", page("from_date=-262143-01-01"), "", b"", 400, "from_date"),
        ("GET", page("before=x"), "", b"", 400, "before"),
        (
            "GET",
            "/api/v1/companies/1".into(),
            "perto-at-least: 1-1\r\nperto-at-least: 1-2\r\n",
            b"",
            400,
            "perto-at-least",
        ),
        (
            "GET",
            "/api/v1/companies/1".into(),
            "perto-company: 1\r\nperto-company: 2\r\n",
            b"",
            400,
            "perto-company",
        ),
        (
            "GET",
            "/api/v1/companies/1".into(),
            "origin: http://localhost\r\norigin: http://other\r\n",
            b"",
            400,
            "origin",
        ),
        ("GET", page("page=2"), "", b"", 400, "page"),
        ("GET", "/api/v1/chats/1/messages".into(), "", b"", 400, "chat"),
        ("POST", messages.clone(), "", br#"{"sender": "user", "body": ""}"#, 422, "body"),
        ("POST", messages.clone(), "", br#"{"sender": "king", "body": "x"}"#, 422, "sender"),
        ("POST", messages.clone(), "", br#"{"sender": "user", "body": "a\u0000b"}"#, 422, "body"),
        ("POST", messages.clone(), "", br#"{"sender": "user", "body": "x", "id": 1}"#, 422, "id"),
        (
            "POST",
            "/api/v1/chats/00000000-0000-4000-9000-000000000001/messages".into(),
            "",
            br#"{"sender": "user", "body": "x"}"#,
            422,
            "perto-company",
        ),
        ("PUT", tool.clone(), "", b"{", 400, "body"),
        ("PUT", tool.clone(), "", deep.as_bytes(), 400, "body"),
        ("PUT", tool.clone(), "", nested.as_bytes(), 422, "body"),
        ("GET", page("before=1"), "", b"", 404, "before"),
        ("DELETE", "/api/v1/cache/contact_by_phone/1:%00".into(), "", b"", 400, "key"),
        ("PUT", "/api/v1/chats/x/tool-results/w".into(), "", b"1", 400, "chat"),
        ("PUT", format!("/api/v1/chats/{CHAT}/tool-results/a%2Fb"), "", b"1", 400, "tool"),
        ("POST", contacts.into(), "", br#"{"phone": "12"}"#, 422, "phone"),
        ("POST", contacts.into(), "", br#"{"phone": "+351912345678", "email": "x"}"#, 422, "email"),
        ("POST", contacts.into(), "", br#"{"phone": "+351912345678", "name": ""}"#, 422, "name"),
        ("POST", format!("{contacts}/validate"), "", b"[]", 422, "body"),
        ("POST", format!("{contacts}/validate"), "", many.as_bytes(), 422, "body"),
        ("POST", format!("{contacts}/validate"), "", br#"[{"phone": "1"}, {"phon": "1"}]"#, 422, "[1].phon"),
        ("POST", format!("{contacts}/preload"), "", br#"{"limit": 0}"#, 422, "limit"),
        ("POST", "/api/v1/companies/999/contacts".into(), "", br#"{"phone": "+351912345678"}"#, 404, ""),
        ("DELETE", "/api/v1/cache/none".into(), "", b"", 404, ""),
        ("DELETE", "/api/v1/cache/company/x".into(), "", b"", 400, "key"),
    ];
    for (method, path, headers, body, status, field) in cases {
        let said = request(&a, method, &path, headers, body).await;
        let what = format!("{method} {path} {:.60}: {}", String::from_utf8_lossy(body), said.text);
        assert_eq!(said.status, status, "{what}");
        assert_eq!(said.header("content-type"), Some("application/problem+json"), "{what}");
        assert_eq!(said.body["status"], status, "{what}");
        match field {
            "" => assert!(said.body["field"].is_null(), "{what}"),
            field => assert_eq!(said.body["field"], field, "{what}"),
        }
        assert!(said.text.len() < 2_000, "{what}");
    }
    let allowed = request(&a, "PUT", "/api/v1/companies/1", "", "").await;
    assert!(allowed.header("allow").unwrap().contains("patch"), "which methods there are");
    assert_eq!(request(&a, "GET", &messages, "", "").await.body, before, "nothing was written");
    assert_eq!(request(&a, "GET", "/api/v1/companies/1", "", "").await.body["name"], "Company 1");
    assert_eq!(request(&a, "GET", &tool, "", "").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_too_large_is_refused_before_it_has_come() {
    let (_database, a, _b) = two_instances();
    let path = format!("/api/v1/chats/{CHAT}/tool-results/w");
    let result = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    assert_eq!(request(&a, "PUT", &path, "", result(256 * 1024)).await.status, 200);
    let more = request(&a, "PUT", &path, "", result(256 * 1024 + 1)).await;
    assert_eq!((more.status, &more.body["field"]), (422, &json!("body")));
    let huge = request(&a, "PUT", &path, "", result(1024 * 1024 + 1)).await;
    assert_eq!((huge.status, &huge.body["field"]), (413, &json!("body")));
    // One that says that it will be huge, and one that doesn't say how long it will be.
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
    );
    let piece = "x".repeat(64 * 1024);
    let chunks = format!("10000\r\n{piece}\r\n").repeat(20);
    let endless = answer(&a, format!("{head}transfer-encoding: chunked\r\n\r\n{chunks}").as_bytes()).await;
    assert_eq!(endless.status, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_waited_for_with_a_limit() {
    let (_database, a, _b) = two_instances();
    let head = "PATCH /api/v1/companies/1 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n";
    let began = std::time::Instant::now();
    let slow = answer(&a, format!("{head}content-length: 100\r\n\r\n{{").as_bytes()).await;
    assert_eq!((slow.status, &slow.body["field"]), (408, &json!("body")));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // A client that goes away in the middle leaves nothing behind.
    let mut gone = TcpStream::connect(&a.address).await.unwrap();
    gone.write_all(format!("{head}content-length: 100\r\n\r\n{{").as_bytes()).await.unwrap();
    drop(gone);
    ends("an answer to the next", request(&a, "GET", "/api/v1/companies/1", "", "")).await;
}
