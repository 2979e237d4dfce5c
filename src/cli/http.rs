//! A GET over HTTP, for what instances of the service say of themselves. Plain, short, and within limits.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LIMIT: Duration = Duration::from_secs(3);
const MOST_BYTES: u64 = 1 << 20;

/// The status and the JSON of an answer.
///
/// # Errors
/// Where there is no such answer; what is said does not quote the URL's user and password.
pub(super) async fn get(url: &str, path: &str, key: Option<&str>) -> anyhow::Result<(u16, Value)> {
    let rest = url.strip_prefix("http://").ok_or_else(|| anyhow!("not a URL like http://127.0.0.1:8080"))?;
    let (authority, prefix) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    if authority.contains('@') {
        bail!("not a URL like http://127.0.0.1:8080");
    }
    let host = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    let path = format!("{}{path}", prefix.trim_end_matches('/'));
    if key.is_some_and(|key| key.contains(char::is_control)) {
        bail!("the key has control characters");
    }
    let answer = tokio::time::timeout(LIMIT, ask(&host, &path, key))
        .await
        .map_err(|_elapsed| anyhow!("no answer within {LIMIT:?}"))?
        .context("can't be reached")?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) =
        answer.split_once("\r\n\r\n").ok_or_else(|| anyhow!("does not answer as HTTP does"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| anyhow!("does not answer as HTTP does"))?;
    let json = serde_json::from_str(body).map_err(|_not_json| anyhow!("answers {status} without JSON"))?;
    Ok((status, json))
}

/// HTTP/1.0: the answer ends with the connection, and comes in one piece.
async fn ask(host: &str, path: &str, key: Option<&str>) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(host).await?;
    let key = key.map_or_else(String::new, |key| format!("authorization: Bearer {key}\r\n"));
    let request = format!("GET {path} HTTP/1.0\r\nhost: {host}\r\naccept: application/json\r\n{key}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(MOST_BYTES).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// A piece of a path: whatever is not plain is escaped.
pub(super) fn segment(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(b).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}
