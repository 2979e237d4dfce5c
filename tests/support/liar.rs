//! A Redis that lies: it takes every command, and answers some as no server would.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What it does. Whatever is not named here it answers as an empty server would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lie {
    None,
    /// Says this to each look-up.
    Value(Answer),
    /// Says this to who has subscribed.
    Push(Answer),
    /// Answers pings of a subscription with this error.
    Ping(&'static str),
    /// Has no messages arrive.
    Deaf,
    /// Says nothing to this command.
    Silent(&'static str),
    /// Has look-ups find other bytes than were put.
    Alters,
}

/// Bytes without end, or nearly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// One text of so many bytes.
    Text(usize),
    /// As many messages, or values, of so many bytes as are taken.
    Texts(usize),
    /// A line that does not end.
    Line,
    /// A list of more than there is.
    List,
    /// Lists in lists.
    Lists,
}

/// How often each command came.
type Asked = Arc<Mutex<HashMap<String, usize>>>;

pub(crate) struct Liar {
    address: String,
    lie: watch::Sender<Lie>,
    told: Arc<AtomicU64>,
    asked: Asked,
    accepting: JoinHandle<()>,
}

impl Liar {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (lie, lies) = watch::channel(Lie::None);
        let told = Arc::new(AtomicU64::new(0));
        let (counted, asked) = (Arc::clone(&told), Asked::default());
        let noted = Arc::clone(&asked);
        #[expect(clippy::disallowed_methods, reason = "aborted with the server")]
        let accepting = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (lies, told, asked) = (lies.clone(), Arc::clone(&counted), Arc::clone(&noted));
                connections.spawn(async move {
                    // Whoever leaves has had enough.
                    let _ended = serve(stream, lies, &told, &asked).await;
                });
            }
        });
        Self { address, lie, told, asked, accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub(crate) fn tell(&self, lie: Lie) {
        self.lie.send_replace(lie);
    }

    /// How often this command came.
    pub(crate) fn asked(&self, name: &str) -> usize {
        self.asked.lock().get(name).copied().unwrap_or_default()
    }

    /// Bytes of lies that it got rid of.
    pub(crate) fn told(&self) -> u64 {
        self.told.load(Ordering::Relaxed)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn serve(
    stream: TcpStream,
    mut lies: watch::Receiver<Lie>,
    told: &AtomicU64,
    asked: &Asked,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut channels: Vec<Vec<u8>> = Vec::new();
    loop {
        let lie = lies.borrow_and_update().clone();
        if let (Lie::Push(answer), Some(channel)) = (&lie, channels.first()) {
            let head = [b"*3\r\n$7\r\nmessage\r\n".to_vec(), bulk(channel)].concat();
            lie_at_length(&mut write, &head, *answer, told).await?;
        }
        let words = tokio::select! {
            words = command(&mut read) => words?,
            changed = lies.changed() => match changed {
                Ok(()) => continue,
                Err(_ended) => return Ok(()),
            },
        };
        let lie = lies.borrow().clone();
        let name = String::from_utf8_lossy(&words[0]).to_uppercase();
        *asked.lock().entry(name.clone()).or_default() += 1;
        let answer = match (&*name, &lie) {
            (name, Lie::Silent(silent)) if name == *silent => continue,
            ("GETRANGE", Lie::Value(answer)) => {
                lie_at_length(&mut write, b"", *answer, told).await?;
                continue;
            }
            ("PING", Lie::Ping(error)) if !channels.is_empty() => format!("-{error}\r\n").into_bytes(),
            ("PING", _) if !channels.is_empty() => b"*2\r\n$4\r\npong\r\n$0\r\n\r\n".to_vec(),
            ("PING", _) => b"+PONG\r\n".to_vec(),
            ("SUBSCRIBE", _) => {
                channels.push(words[1].clone());
                let count = format!(":{}\r\n", channels.len()).into_bytes();
                [b"*3\r\n".to_vec(), bulk(b"subscribe"), bulk(&words[1]), count].concat()
            }
            ("GETRANGE", Lie::Alters) => bulk(b"something else"),
            ("GET" | "GETRANGE", _) => bulk(b""),
            ("MGET", _) => {
                format!("*{}\r\n{}", words.len() - 1, "$-1\r\n".repeat(words.len() - 1)).into_bytes()
            }
            ("SCRIPT", _) => bulk(&[b'0'; 40]),
            ("INFO", _) => bulk(b"redis_version:7.0.0\r\n"),
            ("TIME" | "CONFIG", _) => b"-ERR not here\r\n".to_vec(),
            ("EVALSHA" | "PUBLISH", _) => b":1\r\n".to_vec(),
            ("UNLINK", _) => b":0\r\n".to_vec(),
            _ => b"+OK\r\n".to_vec(),
        };
        write.write_all(&answer).await?;
    }
}

fn bulk(text: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
}

/// A list of texts, as clients send.
async fn command(read: &mut BufReader<tokio::net::tcp::OwnedReadHalf>) -> std::io::Result<Vec<Vec<u8>>> {
    let count = number(read).await?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; number(read).await? + 2];
        read.read_exact(&mut word).await?;
        word.truncate(word.len() - 2);
        words.push(word);
    }
    Ok(words)
}

async fn number(read: &mut BufReader<tokio::net::tcp::OwnedReadHalf>) -> std::io::Result<usize> {
    let mut line = String::new();
    read.read_line(&mut line).await?;
    line.get(1..)
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}

/// Until whoever listens has had enough.
async fn lie_at_length(
    write: &mut OwnedWriteHalf,
    head: &[u8],
    answer: Answer,
    told: &AtomicU64,
) -> std::io::Result<()> {
    const PIECE: usize = 256 << 10;
    let filler = vec![b'x'; PIECE];
    let mut send = async |bytes: &[u8]| {
        told.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        write.write_all(bytes).await
    };
    send(head).await?;
    match answer {
        Answer::Text(length) => {
            send(format!("${length}\r\n").as_bytes()).await?;
            for at in (0..length).step_by(PIECE) {
                send(&filler[..PIECE.min(length - at)]).await?;
            }
            send(b"\r\n").await
        }
        Answer::Texts(length) => {
            let text = bulk(&vec![b'x'; length]);
            let first = text.clone();
            send(&first).await?;
            let each = [head, &text].concat();
            let many = each.repeat((PIECE / each.len()).max(1));
            loop {
                send(&many).await?;
            }
        }
        Answer::Line => {
            send(b"+").await?;
            loop {
                send(&filler).await?;
            }
        }
        Answer::List => {
            send(b"*1000000000\r\n").await?;
            let things = b":1\r\n".repeat(PIECE / 4);
            loop {
                send(&things).await?;
            }
        }
        Answer::Lists => {
            let lists = b"*4000\r\n".repeat(PIECE / 7);
            loop {
                send(&lists).await?;
            }
        }
    }
}
