//! Clients that mean harm: many connections that ask, and take little or nothing of what they are sent.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// What a hostile client does with its answer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Takes {
    Nothing,
    /// 64 bytes each 8 seconds: never nothing for long.
    Drops,
}

/// Connections that are held until this is dropped, or the other end has enough of them.
pub(crate) struct Crowd {
    from: Ipv4Addr,
    held: JoinSet<()>,
}

/// What one connection's kernel keeps for who doesn't read.
const RECEIVE_BUFFER: u32 = 4 * 1024;

impl Crowd {
    pub(crate) fn new() -> Self {
        Self::from(Ipv4Addr::LOCALHOST)
    }

    /// From one of this machine's addresses.
    pub(crate) fn from(from: Ipv4Addr) -> Self {
        Self { from, held: JoinSet::new() }
    }

    /// Opens one connection after the other, each of which sends this.
    pub(crate) async fn join(&mut self, address: &str, count: usize, request: &[u8], takes: Takes) {
        for _ in 0..count {
            // Where no place is left, the attack is over for this one.
            let Ok(mut stream) = connect(address, self.from).await else { continue };
            if stream.write_all(request).await.is_ok() {
                self.held.spawn(hold(stream, takes));
            }
        }
    }

    /// How many are still held.
    pub(crate) fn held(&mut self) -> usize {
        while self.held.try_join_next().is_some() {}
        self.held.len()
    }

    /// Leaves, and waits until all connections are closed at this end.
    pub(crate) async fn leave(mut self) {
        self.held.shutdown().await;
    }
}

async fn connect(address: &str, from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    let address = address.parse().map_err(std::io::Error::other)?;
    match tokio::time::timeout(Duration::from_secs(2), socket.connect(address)).await {
        Ok(connected) => connected,
        Err(_elapsed) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

async fn hold(mut stream: TcpStream, takes: Takes) {
    let mut taken = [0; 64];
    loop {
        match takes {
            // An end that was cut is seen without taking anything.
            Takes::Nothing => match stream.ready(tokio::io::Interest::ERROR).await {
                Ok(ready) if !ready.is_error() => {}
                _ => return,
            },
            Takes::Drops => {
                tokio::time::sleep(Duration::from_secs(8)).await;
                if !matches!(stream.read(&mut taken).await, Ok(1..)) {
                    return;
                }
            }
        }
    }
}

/// Memory that a process has, in bytes: `VmRSS`.
pub(crate) fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}
