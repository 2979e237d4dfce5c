//! The service over HTTP.

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::command::{Database, Served, seeded};
use crate::support::wait::{ends, eventually};

pub(crate) struct Response {
    pub(crate) status: u16,
    head: String,
    /// Null where it is no JSON.
    pub(crate) body: Value,
    pub(crate) text: String,
}

impl Response {
    /// By its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The header that asks for no answer older than this write.
    pub(crate) fn at_least(&self) -> String {
        format!("perto-at-least: {}\r\n", self.header("perto-token").expect("a token"))
    }
}

/// One request on a connection of its own, with a body of JSON unless `headers` say another type.
pub(crate) async fn request(
    served: &Served,
    method: &str,
    path: &str,
    headers: &str,
    body: impl AsRef<[u8]>,
) -> Response {
    let body = body.as_ref();
    let length = body.len();
    let json = if headers.contains("content-type") { "" } else { "content-type: application/json\r\n" };
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{json}content-length: {length}\r\n{headers}\r\n"
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    answer(served, &bytes).await
}

/// What comes back for these bytes.
pub(crate) async fn answer(served: &Served, bytes: &[u8]) -> Response {
    let mut stream = TcpStream::connect(&served.address).await.unwrap();
    // Who is refused early may find the connection closed.
    drop(stream.write_all(bytes).await);
    let mut read = Vec::new();
    drop(ends("a response", stream.read_to_end(&mut read)).await);
    let text = String::from_utf8_lossy(&read);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let head = head.to_lowercase();
    let body = if head.contains("transfer-encoding: chunked") { unchunked(body) } else { body.to_owned() };
    Response { status, head, body: serde_json::from_str(&body).unwrap_or(Value::Null), text: body }
}

fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        whole.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    whole
}

pub(crate) fn two_instances() -> (Database, Served, Served) {
    let database = seeded();
    let (a, b) = (Served::start(&database, "a"), Served::start(&database, "b"));
    (database, a, b)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_company_is_created_read_from_l1_changed_and_deleted() {
    let (_database, a, b) = two_instances();
    let new = json!({ "name": "Perto", "region": "PT" }).to_string();
    let created = request(&a, "POST", "/api/v1/companies", "", &new).await;
    assert_eq!(created.status, 201);
    let path = format!("/api/v1/companies/{}", created.body["id"]);
    let read = request(&b, "GET", &path, &created.at_least(), "").await;
    assert_eq!(read.body, created.body);
    eventually("an answer from L1", async || {
        request(&b, "GET", &path, "", "").await.header("perto-tier") == Some("l1")
    })
    .await;
    let deleted = request(&a, "DELETE", &path, "", "").await;
    assert_eq!(deleted.status, 200);
    assert_eq!(request(&b, "GET", &path, &deleted.at_least(), "").await.status, 404);
    assert_eq!(request(&a, "DELETE", &path, "", "").await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_ends_in_order_when_it_is_asked_to() {
    let (_database, a, b) = two_instances();
    assert_eq!(request(&a, "GET", "/readyz", "", "").await.status, 200);
    assert_eq!(request(&a, "GET", "/livez", "", "").await.status, 200);
    let instances = request(&a, "GET", "/api/v1/cache/instances", "", "").await;
    assert_eq!(instances.body[0]["instance"], "a");
    for stretch in ["5m", "1h", "1d"] {
        assert_eq!(instances.body[0]["audits"][stretch]["violations"], 0, "{}", instances.body);
    }
    assert!(tokio::task::spawn_blocking(move || a.end() && b.end()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_progress_when_the_end_is_asked_for_is_finished() {
    let (database, a, b) = two_instances();
    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    sqlx::query("update companies set name = 'held' where id = 1").execute(&mut *held).await.unwrap();
    let address = a.address.clone();
    let (path, body) = ("/api/v1/companies/1", json!({ "name": "after all" }).to_string());
    let (written, ended) = tokio::join!(request(&a, "PATCH", path, "", &body), async {
        let mut watcher = PgConnection::connect(&database.url).await.unwrap();
        let waits = "select true from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        eventually("the write waits for the row", async || {
            sqlx::query(waits).fetch_optional(&mut watcher).await.unwrap().is_some()
        })
        .await;
        a.ask_to_end();
        eventually("no more connections are taken", async || TcpStream::connect(&address).await.is_err())
            .await;
        held.rollback().await.unwrap();
        true
    });
    assert!(ended);
    assert_eq!((written.status, &written.body["name"]), (200, &json!("after all")), "{}", written.text);
    let read = request(&b, "GET", path, &written.at_least(), "").await;
    assert_eq!(read.body["name"], "after all");
    assert!(tokio::task::spawn_blocking(move || a.end()).await.unwrap());
}
