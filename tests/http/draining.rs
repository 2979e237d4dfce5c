//! The end of an instance that a balancer sends requests to until it has seen that it ends.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::command::{Served, seeded};
use crate::service::request;
use crate::support::wait::{ends, eventually};

/// One request on a connection that stays; the answer's head, in lower case.
async fn ask(stream: &mut TcpStream, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    let reading = async {
        loop {
            let text = String::from_utf8_lossy(&read).to_lowercase();
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if body.len() >= length.unwrap().parse().unwrap() {
                    return head.to_owned();
                }
            }
            assert_ne!(stream.read_buf(&mut read).await.unwrap(), 0, "closed within {text:?}");
        }
    };
    ends("an answer", reading).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_ends_is_not_ready_and_answers_until_nobody_sends_it_anything() {
    let database = seeded();
    let a = Served::start_with(&database, "a", &["--drain", "3s"]);
    let mut stream = TcpStream::connect(&a.address).await.unwrap();
    let mut idle = TcpStream::connect(&a.address).await.unwrap();
    for stream in [&mut stream, &mut idle] {
        let head = ask(stream, "/api/v1/companies/1").await;
        assert!(head.starts_with("http/1.1 200") && !head.contains("connection: close"), "{head}");
    }
    let asked = Instant::now();
    a.ask_to_end();
    eventually("it is not ready", async || request(&a, "GET", "/readyz", "", "").await.status == 503).await;
    assert_eq!(request(&a, "GET", "/readyz", "", "").await.text, "ending\n");
    assert_eq!(request(&a, "GET", "/livez", "", "").await.status, 200, "whoever looks must not kill it");
    // One that comes all the same is answered, and told to come no more.
    let head = ask(&mut stream, "/api/v1/companies/1").await;
    assert!(head.starts_with("http/1.1 200") && head.contains("connection: close"), "{head}");
    assert_eq!(ends("it closes", stream.read(&mut [0])).await.unwrap(), 0);
    assert_eq!(request(&a, "GET", "/api/v1/companies/1", "", "").await.status, 200);
    assert!(asked.elapsed() < Duration::from_secs(3), "too slow a machine to say anything");
    assert_eq!(ends("the idle one closes", idle.read(&mut [0])).await.unwrap(), 0);
    assert!(asked.elapsed() >= Duration::from_secs(3), "before the time was over");
    assert!(tokio::task::spawn_blocking(move || a.end()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_for_an_end_twice_does_not_wait_for_the_balancer() {
    let database = seeded();
    let a = Served::start_with(&database, "a", &["--drain", "60s"]);
    a.ask_to_end();
    eventually("it is not ready", async || request(&a, "GET", "/readyz", "", "").await.status == 503).await;
    let again = Instant::now();
    assert!(tokio::task::spawn_blocking(move || a.end()).await.unwrap());
    assert!(again.elapsed() < Duration::from_secs(30), "{:?}", again.elapsed());
}
