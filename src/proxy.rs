//! A TCP proxy that misbehaves on command: for tests and for `perto replay`, in front of any server.
//!
//! Faults happen to bytes on the way, so that neither side has to take part. Connections and their tasks end with the
//! proxy.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What the proxy does to the bytes that pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Resets every connection, and each new one as soon as it comes.
    Cut,
    /// Keeps connections open, accepts new ones, and lets nothing pass: what a dead host or a lost route looks like.
    /// What was on the way arrives when the fault ends.
    BlackHole,
    /// A black hole for what clients send.
    BlackHoleToServer,
    /// A black hole for what the server sends.
    BlackHoleToClient,
    /// Holds each piece back for so long.
    Delay(Duration),
    /// Drops what a Redis server pushes to subscribers, and lets everything else pass: messages are lost while the
    /// connection stands, which no reconnect shows.
    DropMessages,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

/// A running proxy. Dropping it ends it and resets its connections.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    server: watch::Sender<Arc<str>>,
    fault: watch::Sender<Fault>,
    ending: CancellationToken,
    tasks: TaskTracker,
}

/// Most bytes of one message that are looked at. A longer one passes.
const MAX_MESSAGE: usize = 4 << 20;

impl FaultProxy {
    /// Listens on a free port of 127.0.0.1 and passes everything on to `server`, a `host:port`.
    ///
    /// # Errors
    /// If no port is to be had.
    pub async fn start(server: impl Into<String>) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (server, _) = watch::channel(Arc::from(server.into()));
        let (fault, _) = watch::channel(Fault::None);
        let (ending, tasks) = (CancellationToken::new(), TaskTracker::new());
        let accepting = accept(listener, server.clone(), fault.clone(), tasks.clone(), ending.clone());
        let ended = ending.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = accepting => {}
                () = ended.cancelled() => {}
            }
        });
        Ok(Self { address, server, fault, ending, tasks })
    }

    /// Where clients connect to.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins a fault, or ends it with [`Fault::None`]. Takes effect on open connections too.
    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// Passes everything on to another server from now on, as an address that moves does in a failover. Connections to
    /// the old one are reset.
    pub fn point_at(&self, server: impl Into<String>) {
        self.server.send_replace(Arc::from(server.into()));
    }

    /// Connections that are open, each counted once.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.tasks.len().saturating_sub(1)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.ending.cancel();
    }
}

async fn accept(
    listener: TcpListener,
    server: watch::Sender<Arc<str>>,
    fault: watch::Sender<Fault>,
    tasks: TaskTracker,
    ending: CancellationToken,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (server, faults, ending) = (server.subscribe(), fault.subscribe(), ending.clone());
        tasks.spawn(async move {
            tokio::select! {
                // A connection that breaks is its clients' matter.
                _ = connection(client, server, faults) => {}
                () = ending.cancelled() => {}
            }
        });
    }
}

async fn connection(
    client: TcpStream,
    mut server: watch::Receiver<Arc<str>>,
    faults: watch::Receiver<Fault>,
) -> io::Result<()> {
    // The kernel accepts at once; the fault decides what comes of it.
    reset_on_close(&client);
    if *faults.borrow() == Fault::Cut {
        return Ok(());
    }
    let (mut opening, mut cut) = (faults.clone(), faults.clone());
    let upstream = tokio::select! {
        upstream = async {
            passable(&mut opening, Direction::ToServer).await;
            let place = Arc::clone(&server.borrow_and_update());
            TcpStream::connect(&*place).await
        } => upstream?,
        () = until_cut(&mut cut) => return Ok(()),
    };
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    reset_on_close(&upstream);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = upstream.into_split();
    tokio::select! {
        done = pump(from_client, to_server, faults.clone(), Direction::ToServer) => done,
        done = pump(from_server, to_client, faults, Direction::ToClient) => done,
        () = until_cut(&mut cut) => Ok(()),
        // It has moved away.
        _ = server.changed() => Ok(()),
    }
}

/// Closing sends a reset, as a cut does, and leaves nothing waiting.
fn reset_on_close(stream: &TcpStream) {
    #[expect(deprecated, reason = "a lingering close is what this avoids: zero seconds don't block")]
    drop(stream.set_linger(Some(Duration::ZERO)));
}

async fn until_cut(faults: &mut watch::Receiver<Fault>) {
    if faults.wait_for(|fault| *fault == Fault::Cut).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Waits until bytes in this direction may pass. Returns how long they are held back.
async fn passable(faults: &mut watch::Receiver<Fault>, direction: Direction) -> Duration {
    let stuck = |fault: &Fault| match fault {
        Fault::BlackHole => true,
        Fault::BlackHoleToServer => direction == Direction::ToServer,
        Fault::BlackHoleToClient => direction == Direction::ToClient,
        Fault::None | Fault::Cut | Fault::Delay(_) | Fault::DropMessages => false,
    };
    match faults.wait_for(|fault| !stuck(fault)).await.map(|fault| *fault) {
        Ok(Fault::Delay(delay)) => delay,
        _ => Duration::ZERO,
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut faults: watch::Receiver<Fault>,
    direction: Direction,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut messages = Messages::default();
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        let delay = passable(&mut faults, direction).await;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let dropping = direction == Direction::ToClient && *faults.borrow() == Fault::DropMessages;
        if dropping || messages.is_partial() {
            to.write_all(&messages.without(&buffer[..read], dropping)).await?;
        } else {
            to.write_all(&buffer[..read]).await?;
        }
    }
}

/// Cuts a stream of Redis replies into whole ones, to drop those that are messages.
#[derive(Debug, Default)]
struct Messages {
    rest: Vec<u8>,
}

impl Messages {
    const fn is_partial(&self) -> bool {
        !self.rest.is_empty()
    }

    fn without(&mut self, bytes: &[u8], dropping: bool) -> Vec<u8> {
        self.rest.extend_from_slice(bytes);
        let mut passed = Vec::new();
        let mut at = 0;
        while let Some(length) = reply_length(&self.rest[at..]) {
            let reply = &self.rest[at..at + length];
            if !(dropping && is_message(reply)) {
                passed.extend_from_slice(reply);
            }
            at += length;
        }
        if self.rest.len() - at > MAX_MESSAGE {
            passed.extend_from_slice(&self.rest[at..]);
            at = self.rest.len();
        }
        self.rest.drain(..at);
        passed
    }
}

/// A RESP2 array or RESP3 push whose first element is `message`.
fn is_message(reply: &[u8]) -> bool {
    reply.starts_with(b"*3\r\n$7\r\nmessage\r\n") || reply.starts_with(b">3\r\n$7\r\nmessage\r\n")
}

/// The length of the reply that `bytes` begin with; `None` where it isn't whole yet.
fn reply_length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let count = std::str::from_utf8(&bytes[1..line - 2]).ok().and_then(|text| text.parse::<i64>().ok());
    match bytes[0] {
        b'$' => match usize::try_from(count?) {
            Ok(length) => Some(line + length + 2).filter(|end| *end <= bytes.len()),
            Err(_nil) => Some(line),
        },
        b'*' | b'>' => {
            let mut end = line;
            for _ in 0..count.unwrap_or(0).max(0) {
                end += reply_length(bytes.get(end..)?)?;
            }
            Some(end)
        }
        _ => Some(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_dropped_and_other_replies_pass_wherever_the_stream_is_cut() {
        let message = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$4\r\n\r\n\r\n\r\n".to_vec();
        let pong = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n".to_vec();
        let stream =
            [message.clone(), pong.clone(), message, b"+OK\r\n".to_vec(), b"$-1\r\n".to_vec()].concat();
        let expected = [pong, b"+OK\r\n".to_vec(), b"$-1\r\n".to_vec()].concat();
        for step in 1..stream.len() {
            let mut messages = Messages::default();
            let passed: Vec<u8> =
                stream.chunks(step).flat_map(|bytes| messages.without(bytes, true)).collect();
            assert_eq!(passed, expected, "in steps of {step}");
            assert!(!messages.is_partial());
        }
    }
}
