//! What is over a share is refused before its body has come: to read a large one is most of what it costs.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::command::{ADMIN_KEY, Served, key_of, seeded};
use crate::service::request;
use crate::support::wait::ends;

/// Shorter than a body is waited for.
const AT_ONCE: Duration = Duration::from_secs(5);
const VALIDATE: &str = "/api/v1/companies/2/contacts/validate";

/// A request whose body has begun, and does not go on.
struct Unfinished {
    stream: TcpStream,
    rest: usize,
}

impl Unfinished {
    async fn begin(served: &Served, method: &str, path: &str, headers: &str, length: usize) -> Self {
        let mut stream = TcpStream::connect(&served.address).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n{headers}\r\n["
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        Self { stream, rest: length - 1 }
    }

    /// What is said of it before it goes on.
    async fn answer(&mut self) -> Option<String> {
        tokio::time::timeout(AT_ONCE, said(&mut self.stream)).await.ok()
    }
}

/// An answer of some length.
async fn said(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&said);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if body.len() == length.parse::<usize>().unwrap() {
                return text.into_owned();
            }
        }
        assert_ne!(stream.read_buf(&mut said).await.unwrap(), 0, "closed after {said:?}");
    }
}

fn bearer(key: &str) -> String {
    format!("authorization: Bearer {key}\r\n")
}

const JSON: &str = "content-type: application/json\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_over_the_share_is_not_waited_for() {
    let database = seeded();
    let key = bearer(&key_of(&database, 2));
    let validation = ("POST", VALIDATE, format!("{JSON}content-length: 68000\r\n"));
    let endless = ("POST", VALIDATE, format!("{JSON}transfer-encoding: chunked\r\n"));
    let result = "/api/v1/chats/00000000-0000-4000-9000-0000000000f1/tool-results/w";
    let large = ("PUT", result, format!("{JSON}content-length: 1000000\r\n"));
    for (method, path, headers) in [validation, endless, large] {
        let a = Served::start_with(&database, "a", &["--admin-key", ADMIN_KEY, "--rate-limit", "20"]);
        // One or two of them are all that may come at once.
        let mut begun = Vec::new();
        for _ in 0..6 {
            let mut stream = TcpStream::connect(&a.address).await.unwrap();
            let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{key}{headers}\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            begun.push(stream);
        }
        let waiting = begun.iter_mut().map(|stream| tokio::time::timeout(AT_ONCE, said(stream)));
        let answers: Vec<String> =
            futures_util::future::join_all(waiting).await.into_iter().filter_map(Result::ok).collect();
        assert!((1..=5).contains(&answers.len()), "{method} {headers}: {answers:?}");
        for answer in answers {
            assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
            assert!(answer.contains("urn:perto:problem:too-many-requests"), "{answer}");
            assert!(answer.contains("\r\nretry-after: "), "{answer}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_first_and_still_writes_sees_the_answer_and_keeps_the_connection() {
    let database = seeded();
    let a = Served::start_with(&database, "a", &["--admin-key", ADMIN_KEY]);
    let mut refused = Unfinished::begin(&a, "POST", VALIDATE, JSON, 500_000).await;
    let answer = refused.answer().await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    refused.stream.write_all(&vec![b' '; refused.rest]).await.unwrap();
    refused.stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let next = ends("the next answer", said(&mut refused.stream)).await;
    assert!(next.starts_with("HTTP/1.1 200 "), "{next}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_first_and_never_goes_on_is_left() {
    let database = seeded();
    let a = Served::start_with(&database, "a", &["--admin-key", ADMIN_KEY]);
    let mut refused = Unfinished::begin(&a, "POST", VALIDATE, JSON, 500_000).await;
    assert!(refused.answer().await.unwrap().starts_with("HTTP/1.1 401 "));
    let ended = ends("the connection", refused.stream.read(&mut [0])).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_whose_length_is_too_much_is_not_waited_for() {
    let database = seeded();
    let a = Served::start_with(&database, "a", &["--admin-key", ADMIN_KEY]);
    let headers = format!("{}{JSON}", bearer(&key_of(&database, 2)));
    let mut huge = Unfinished::begin(&a, "POST", VALIDATE, &headers, 1024 * 1024 + 1).await;
    let answer = huge.answer().await;
    assert!(answer.as_ref().is_some_and(|answer| answer.starts_with("HTTP/1.1 413 ")), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_too_many_is_refused_before_its_header_comes() {
    let database = seeded();
    let arguments = ["--admin-key", ADMIN_KEY, "--imports-at-once", "0", "--imports-per-company", "1"];
    let a = Served::start_with(&database, "a", &arguments);
    let headers = format!("{}content-type: text/csv\r\n", bearer(&key_of(&database, 2)));
    let imports = "/api/v1/companies/2/contacts/imports";
    let first = request(&a, "POST", imports, &headers, "phone\n+351912345678\n").await;
    assert_eq!(first.status, 202, "{}", first.text);
    let mut second = Unfinished::begin(&a, "POST", imports, &headers, 1_000).await;
    let answer = second.answer().await;
    assert!(answer.as_ref().is_some_and(|answer| answer.contains("too-many-imports")), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_a_body_might_have_had_only_what_it_had_is_counted() {
    let database = seeded();
    let a = Served::start_with(&database, "a", &["--admin-key", ADMIN_KEY, "--rate-limit", "20"]);
    let key = bearer(&key_of(&database, 2));
    // It could be a thousand contacts, and is one.
    let one = format!("[{}{}]", json!({ "phone": "+351912345678" }), " ".repeat(13_000));
    for _ in 0..12 {
        let answer = request(&a, "POST", VALIDATE, &key, &one).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
}
