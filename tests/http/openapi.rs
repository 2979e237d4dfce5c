//! The API's description: every route that is there, and nothing else.

use serde_json::Value;

use crate::command::{ADMIN_KEY, Served, seeded};
use crate::service::request;

#[tokio::test(flavor = "multi_thread")]
async fn every_route_that_is_described_answers_and_says_what_may_go_wrong() {
    let database = seeded();
    let a = Served::start_closed(&database, "a");
    let document = request(&a, "GET", "/openapi.json", "", "").await.body;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut described = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let problem =
                &operation["responses"]["default"]["content"]["application/problem+json"]["schema"]["$ref"];
            assert_eq!(problem, "#/components/schemas/Problem", "{method} {path}");
            assert!(
                operation["summary"].as_str().is_some_and(|summary| !summary.is_empty()),
                "{method} {path}"
            );
            let there = path.replace("{chat}", "00000000-0000-4000-8000-00000000ffff").replace("{tool}", "w");
            let there =
                there.replace("{cache}", "none").replace("{key}", "1").replace("{phone}", "%2B12125552368");
            // Without a key each is refused, and by its own route: what is no route is a 404.
            let there = numbered(&there);
            let refused = request(&a, &method.to_uppercase(), &there, "", "").await;
            assert_eq!(refused.status, 401, "{method} {there}: {}", refused.text);
            described.push(format!("{} {path}", method.to_uppercase()));
        }
    }
    for route in [
        "GET /api/v1/chats/{chat}/messages",
        "POST /api/v1/chats/{chat}/messages",
        "GET /api/v1/companies/{id}",
        "PATCH /api/v1/companies/{id}",
        "DELETE /api/v1/companies/{id}",
        "POST /api/v1/companies",
        "GET /api/v1/users/{id}",
        "PATCH /api/v1/users/{id}",
        "DELETE /api/v1/users/{id}",
        "POST /api/v1/users",
        "GET /api/v1/companies/{company}/inbox",
        "GET /api/v1/companies/{company}/overview",
        "GET /api/v1/companies/{company}/contacts",
        "GET /api/v1/companies/{company}/contacts/{id}",
        "PATCH /api/v1/companies/{company}/contacts/{id}",
        "DELETE /api/v1/companies/{company}/contacts/{id}",
        "POST /api/v1/companies/{company}/contacts",
        "GET /api/v1/companies/{company}/contacts/by-phone/{phone}",
        "POST /api/v1/companies/{company}/contacts/validate",
        "POST /api/v1/companies/{company}/contacts/preload",
        "POST /api/v1/companies/{company}/contacts/imports",
        "GET /api/v1/companies/{company}/contacts/imports/{id}",
        "DELETE /api/v1/companies/{company}/contacts/imports/{id}",
        "GET /api/v1/companies/{company}/contacts/imports/{id}/rejected",
        "PUT /api/v1/chats/{chat}/tool-results/{tool}",
        "GET /api/v1/chats/{chat}/tool-results/{tool}",
        "GET /api/v1/cache/metrics",
        "DELETE /api/v1/cache/metrics",
        "DELETE /api/v1/cache/{cache}/{key}",
        "DELETE /api/v1/cache/{cache}",
        "GET /api/v1/cache/switches",
        "PUT /api/v1/cache/switches/{cache}/{tier}",
        "DELETE /api/v1/cache/switches/{cache}/{tier}",
        "GET /api/v1/cache/alerts",
        "GET /api/v1/cache/instances",
        "GET /api/v1/cache/stream",
    ] {
        assert!(described.iter().any(|known| known == route), "{route} is not described: {described:#?}");
    }
}

/// What it says of a read, a read does.
#[tokio::test(flavor = "multi_thread")]
async fn every_read_of_a_cache_says_how_new_it_is_to_be_and_how_new_it_is() {
    let database = seeded();
    let a = Served::start(&database, "a");
    let document = request(&a, "GET", "/openapi.json", "", "").await.body;
    let tool = "/api/v1/chats/00000000-0000-4000-8000-000000000001/tool-results/w";
    assert_eq!(request(&a, "PUT", tool, "", "1").await.status, 200);
    let mut read = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let takes = |header: &str| {
            let parameters = item["get"]["parameters"].as_array();
            parameters.into_iter().flatten().any(|parameter| parameter["name"] == header)
        };
        assert_eq!(takes("perto-at-least"), takes("perto-read"), "{path}");
        if !takes("perto-read") {
            continue;
        }
        read += 1;
        let chat = path.replace("{chat}", "00000000-0000-4000-8000-000000000001").replace("{tool}", "w");
        let there = chat.replace("contacts/{id}", "contacts/20").replace("{phone}", "910000020");
        let there = numbered(&there);
        let headers = item["get"]["responses"]["200"]["headers"].as_object().unwrap();
        for wanted in ["", "perto-read: latest\r\n", "perto-read: within=100ms\r\n"] {
            let answer = request(&a, "GET", &there, wanted, "").await;
            assert_eq!(answer.status, 200, "{there}: {}", answer.text);
            for header in ["perto-token", "perto-tier", "perto-freshness", "etag"] {
                assert!(headers.contains_key(header), "{path} does not describe {header}");
                assert!(answer.header(header).is_some(), "{there} has no {header}");
            }
            let again = request(&a, "GET", &there, &answer.at_least(), "").await;
            assert_eq!((again.status, again.header("perto-freshness")), (200, Some("fresh")), "{there}");
        }
    }
    assert!(read >= 9, "only {read} reads");
}

/// The rest of a path's parameters are numbers.
fn numbered(path: &str) -> String {
    path.split('/').map(|part| if part.starts_with('{') { "1" } else { part }).collect::<Vec<_>>().join("/")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_to_try_it_needs_nothing_from_elsewhere() {
    let database = seeded();
    let a = Served::start_on(&database.url, "", "a", &["--admin-key", ADMIN_KEY]);
    let page = request(&a, "GET", "/docs/", "", "").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html")));
    assert!(!page.text.contains("://"), "{}", page.text);
    for file in [
        "swagger-ui-bundle.js",
        "swagger-ui-standalone-preset.js",
        "swagger-initializer.js",
        "swagger-ui.css",
        "index.css",
    ] {
        assert!(page.text.contains(file), "{file}");
        assert_eq!(request(&a, "GET", &format!("/docs/{file}"), "", "").await.status, 200, "{file}");
    }
    let starts = request(&a, "GET", "/docs/swagger-initializer.js", "", "").await;
    assert!(starts.text.contains("/openapi.json"), "{}", starts.text);
    assert_eq!(request(&a, "GET", "/docs", "", "").await.header("location"), Some("/docs/"));
    assert_eq!(request(&a, "GET", "/docs/../Cargo.toml", "", "").await.body["status"], Value::from(404));
}
