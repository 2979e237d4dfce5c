//! A client that keeps its connection, and may come from any address of this machine: limits by address see several of them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

/// Longer than the service may take for a request.
const PATIENCE: Duration = Duration::from_secs(35);
/// Requests until a client of several asks the first one again.
const RETURNS_AFTER: usize = 25;
/// Longest line of a head, and longest body that is read.
const MOST: u64 = 64 << 20;

/// Who asks: where from, and with which key.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) from: Ipv4Addr,
    pub(crate) key: Option<String>,
}

pub(crate) struct Client {
    /// The first is asked, and another one only where nobody listens there, as a load balancer does it.
    to: Vec<String>,
    /// Requests on this connection.
    sent: usize,
    who: Who,
    stream: Option<BufReader<TcpStream>>,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }
}

impl Client {
    pub(crate) fn new(to: &str, who: &Who) -> Self {
        Self::of_several(vec![to.to_owned()], who)
    }

    pub(crate) fn of_several(to: Vec<String>, who: &Who) -> Self {
        Self { to, sent: 0, who: who.clone(), stream: None }
    }

    pub(crate) async fn get(&mut self, path: &str) -> io::Result<Answer> {
        self.send("GET", path, "", b"").await
    }

    /// One request. A connection that the other end has closed meanwhile is made anew, once.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> io::Result<Answer> {
        self.sent += 1;
        if self.to.len() > 1 && self.sent.is_multiple_of(RETURNS_AFTER) {
            self.stream = None;
        }
        let kept = self.stream.is_some();
        match self.try_send(method, path, headers, body).await {
            Err(_) if kept => self.try_send(method, path, headers, body).await,
            answered => answered,
        }
    }

    async fn try_send(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> io::Result<Answer> {
        let key = self.who.key.as_ref().map(|key| format!("authorization: Bearer {key}\r\n"));
        let json = if headers.contains("content-type") { "" } else { "content-type: application/json\r\n" };
        let length =
            if body.is_empty() { String::new() } else { format!("{json}content-length: {}\r\n", body.len()) };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{length}{}{headers}\r\n",
            key.unwrap_or_default()
        );
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => BufReader::new(self.connect().await?),
        };
        let answering = async {
            stream.get_mut().write_all(&[head.as_bytes(), body].concat()).await?;
            read(&mut stream).await
        };
        let answer = tokio::time::timeout(PATIENCE, answering).await??;
        // Dropped in the middle, the connection is gone.
        if answer.header("connection") != Some("close") {
            self.stream = Some(stream);
        }
        Ok(answer)
    }
}

impl Client {
    async fn connect(&self) -> io::Result<TcpStream> {
        let mut connected = Err(io::ErrorKind::NotFound.into());
        for to in &self.to {
            connected = connect(to, self.who.from).await;
            if !connected.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                break;
            }
        }
        connected
    }
}

/// A connection from one of this machine's addresses.
pub(crate) async fn connect(to: &str, from: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    let to = to.parse().map_err(io::Error::other)?;
    let stream = tokio::time::timeout(PATIENCE, socket.connect(to)).await??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    match stream.take(MOST).read_line(&mut line).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line.trim_end().to_owned()),
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Answer> {
    let no_answer = || io::Error::other("no answer");
    let status = line(stream).await?;
    let status = status.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(no_answer)?;
    let mut headers = Vec::new();
    loop {
        let line = line(stream).await?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let mut answer = Answer { status, headers, body: Vec::new() };
    if answer.header("transfer-encoding") == Some("chunked") {
        loop {
            let length = usize::from_str_radix(&line(stream).await?, 16).map_err(io::Error::other)?;
            let at = answer.body.len();
            answer.body.resize(at + length, 0);
            stream.read_exact(&mut answer.body[at..]).await?;
            line(stream).await?;
            if length == 0 {
                break;
            }
        }
    } else if !matches!(status, 204 | 304) {
        let length = answer.header("content-length").and_then(|length| length.parse().ok());
        answer.body.resize(length.ok_or_else(no_answer)?, 0);
        stream.read_exact(&mut answer.body).await?;
    }
    Ok(answer)
}
