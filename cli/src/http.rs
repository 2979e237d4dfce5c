//! Requests over HTTP, for what instances of the service say of themselves. Plain, short, and within limits.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(3);
const MAX_BYTES: u64 = 1 << 20;

/// What is asked.
#[derive(Debug, Default)]
pub struct Request<'a> {
    /// With its query.
    pub path: &'a str,
    /// Sent as a bearer.
    pub key: Option<&'a str>,
    /// JSON to be posted; without it, it is a GET.
    /// Text.
    pub body: Option<&'a str>,
    /// Where the URL leads, where that was found out before.
    pub at: Option<SocketAddr>,
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    /// Of HTTP.
    pub status: u16,
    head: String,
    /// As text.
    pub body: String,
}

impl Answer {
    /// By its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            line.split_once(':')
                .filter(|(given, _)| given.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.trim())
        })
    }
}

/// The status and the JSON of an answer.
///
/// # Errors
/// As [`ask`]; and where it is no JSON.
pub async fn get(url: &str, path: &str, key: Option<&str>) -> anyhow::Result<(u16, Value)> {
    let Answer { status, body, .. } = ask(url, &Request { path, key, ..Request::default() }).await?;
    let json = serde_json::from_str(&body).map_err(|_not_json| anyhow!("answers {status} without JSON"))?;
    Ok((status, json))
}

/// The first address of a URL's host, to be asked many times.
///
/// # Errors
/// Where it has none.
pub async fn resolve(url: &str) -> anyhow::Result<SocketAddr> {
    let (host, _) = parts(url)?;
    let found = tokio::time::timeout(LIMIT, tokio::net::lookup_host(host.as_str())).await;
    let found =
        found.map_err(|_elapsed| anyhow!("no address within {LIMIT:?}"))?.context("has no address")?;
    found.into_iter().next().ok_or_else(|| anyhow!("has no address"))
}

/// Host and port, and what stands before paths.
fn parts(url: &str) -> anyhow::Result<(String, &str)> {
    let rest = url.strip_prefix("http://").ok_or_else(|| anyhow!("not a URL like http://127.0.0.1:8080"))?;
    let (authority, prefix) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    if authority.contains('@') {
        bail!("not a URL like http://127.0.0.1:8080");
    }
    let host = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    Ok((host, prefix))
}

/// # Errors
/// Where there is no such answer; what is said does not quote the URL's user and password.
pub async fn ask(url: &str, request: &Request<'_>) -> anyhow::Result<Answer> {
    let (host, prefix) = parts(url)?;
    let path = format!("{}{}", prefix.trim_end_matches('/'), request.path);
    if request.key.is_some_and(|key| key.contains(char::is_control)) {
        bail!("the key has control characters");
    }
    let answer = tokio::time::timeout(LIMIT, send(&host, &path, request))
        .await
        .map_err(|_elapsed| anyhow!("no answer within {LIMIT:?}"))?
        .context("can't be reached")?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| anyhow!("does not answer as HTTP does"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| anyhow!("does not answer as HTTP does"))?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// HTTP/1.0: the answer ends with the connection, and comes in one piece.
async fn send(host: &str, path: &str, request: &Request<'_>) -> std::io::Result<Vec<u8>> {
    let mut stream = match request.at {
        Some(at) => TcpStream::connect(at).await?,
        None => TcpStream::connect(host).await?,
    };
    let key = request.key.map_or_else(String::new, |key| format!("authorization: Bearer {key}\r\n"));
    let (method, body) = request.body.map_or(("GET", ""), |body| ("POST", body));
    let json = match request.body {
        Some(body) => format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len()),
        None => String::new(),
    };
    let request = format!(
        "{method} {path} HTTP/1.0\r\nhost: {host}\r\naccept: application/json\r\n{key}{json}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MAX_BYTES).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// A piece of a path: whatever is not plain is escaped.
pub fn segment(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}
