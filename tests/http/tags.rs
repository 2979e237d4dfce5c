//! Entity tags and parameters, as clients and what is between them write them.

use serde_json::json;

use crate::resources::CHAT;
use crate::service::{request, two_instances};

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_the_client_has_is_not_sent_again_however_the_tag_is_listed() {
    let (_database, a, _b) = two_instances();
    for path in ["/api/v1/companies/1".to_owned(), format!("/api/v1/chats/{CHAT}/messages?limit=2")] {
        let first = request(&a, "GET", &path, "", "").await;
        let tag = first.header("etag").unwrap().to_owned();
        let bare = tag.trim_matches('"');
        for headers in [
            format!("if-none-match: {tag}\r\n"),
            format!("if-none-match: W/{tag}\r\n"),
            format!("if-none-match: \"x\"\r\nif-none-match: {tag}\r\n"),
            format!("if-none-match: \"a,b\", {tag}\r\n"),
            format!("if-none-match: \"{bare}-gzip\"\r\n"),
            format!("if-none-match: W/\"{bare}-br\"\r\n"),
            "if-none-match: *\r\n".to_owned(),
        ] {
            let again = request(&a, "GET", &path, &headers, "").await;
            assert_eq!((again.status, again.text.as_str()), (304, ""), "{headers}");
            assert_eq!(again.header("etag"), Some(tag.as_str()));
        }
        for headers in [
            "if-none-match: \"a,*,b\"\r\n".to_owned(),
            format!("if-none-match: \"a,{bare},b\"\r\n"),
            format!("if-none-match: {bare}\r\n"),
            format!("if-none-match: \"{bare}-zip\"\r\n"),
            "if-none-match: \"x\"\r\nif-none-match: \"y\"\r\n".to_owned(),
        ] {
            let again = request(&a, "GET", &path, &headers, "").await;
            assert_eq!((again.status, &again.body), (200, &first.body), "{headers}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_plus_in_a_query_is_said_to_be_a_space() {
    let (_database, a, _b) = two_instances();
    let page = |query: &str| format!("/api/v1/chats/{CHAT}/messages?{query}");
    for (query, field) in [
        ("from_date=2026-01-31T12:00:00+02:00", "from_date"),
        ("limit=+5", "limit"),
        ("limit=5&before=+7", "before"),
    ] {
        let said = request(&a, "GET", &page(query), "", "").await;
        assert_eq!((said.status, &said.body["field"]), (400, &json!(field)), "{query}: {}", said.text);
        assert!(said.body["detail"].as_str().unwrap().contains("write it as `%2B`"), "{}", said.text);
    }
    let encoded = request(&a, "GET", &page("from_date=2026-01-31T12:00:00%2B02:00"), "", "").await;
    assert_eq!(encoded.status, 200, "{}", encoded.text);
    let other = request(&a, "GET", &page("limit=x&from_date=2026-01-31T12:00:00%2B02:00"), "", "").await;
    assert!(!other.body["detail"].as_str().unwrap().contains("%2B"), "{}", other.text);
}
