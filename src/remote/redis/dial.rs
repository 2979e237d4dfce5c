//! Connections to Redis that are made here, so that what comes over them has a limit ([`Limited`]). By TCP, by TLS or by a
//! Unix socket, as the URL says; what is said on them is the client's.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_ok;
use redis::aio::{MultiplexedConnection, PubSub, SendError};
use redis::{
    AsyncConnectionConfig, ConnectionAddr, ErrorKind, ProtocolVersion, PushInfo, RedisConnectionInfo,
    RedisError, RedisResult,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::address::Address;
use super::frames::{Limited, Waiting};
use crate::error::RemoteError;

/// How long a server may say nothing before the kernel asks whether it is there, and how long it may confirm nothing.
#[cfg(target_os = "linux")]
const SILENT_FOR: Duration = Duration::from_secs(10);

/// Longest answer of a node about slots, and most things in it: each slot may be a range of its own, with several nodes.
const MAX_OWNERS: usize = 16 << 20;
const MAX_OWNER_THINGS: usize = 1 << 19;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection for commands, and the task that speaks for it. It ends with this.
#[derive(Debug)]
pub(crate) struct Dialled {
    pub(crate) connection: MultiplexedConnection,
    _speaker: AbortOnDropHandle<()>,
}

/// No answer has more bytes of text than `most`. Connecting takes no longer than `limit`, from when it is known who we are. Answers take
/// no longer than `answer_within`; without, each who asks has a limit of its own, and no command pays for a timer that nobody needs.
pub(crate) async fn commands(
    address: &Address,
    most: usize,
    limit: Duration,
    answer_within: Option<Duration>,
) -> RedisResult<Dialled> {
    let login = address.login().await?;
    let connecting = async {
        let stream = Limited::new(dial(address).await?, most);
        let config = AsyncConnectionConfig::new().set_response_timeout(answer_within);
        speak(&login, stream, config).await
    };
    tokio::time::timeout(limit, connecting).await.map_err(timed_out)?
}

/// For one question to a node of a cluster, whose answer has as many things as there are slots.
pub(crate) async fn owners(address: &Address, login: &RedisConnectionInfo) -> RedisResult<Dialled> {
    let stream = Limited::new(dial(address).await?, MAX_OWNERS).with_things(MAX_OWNER_THINGS);
    speak(login, stream, AsyncConnectionConfig::new()).await
}

/// For commands, and for what comes without one (RESP3), which goes to `hear`: within the limits of [`messages`].
pub(crate) async fn pushes(
    address: &Address,
    login: RedisConnectionInfo,
    most: usize,
    waiting: Waiting,
    most_waiting: usize,
    hear: impl Fn(PushInfo) -> Result<(), SendError> + Send + Sync + 'static,
) -> RedisResult<Dialled> {
    let stream = Limited::new(dial(address).await?, most).with_waiting(waiting, most_waiting);
    let settings = login.set_protocol(ProtocolVersion::RESP3);
    // Who waits for an answer has a limit.
    let config = AsyncConnectionConfig::new().set_response_timeout(None).set_push_sender(hear);
    speak(&settings, stream, config).await
}

async fn speak(
    settings: &RedisConnectionInfo,
    stream: Limited<Box<dyn Stream>>,
    config: AsyncConnectionConfig,
) -> RedisResult<Dialled> {
    let (connection, speaker) = MultiplexedConnection::new_with_config(settings, stream, config).await?;
    #[expect(clippy::disallowed_methods, reason = "its handle is the owner: it ends with the connection")]
    let speaker = AbortOnDropHandle::new(tokio::spawn(speaker));
    Ok(Dialled { connection, _speaker: speaker })
}

/// No message has more bytes of text than `most`, and no more than `most_waiting` wait for whoever takes messages.
pub(crate) async fn messages(
    address: &Address,
    login: &RedisConnectionInfo,
    most: usize,
    waiting: Waiting,
    most_waiting: usize,
) -> RedisResult<PubSub> {
    let stream = Limited::new(dial(address).await?, most).with_waiting(waiting, most_waiting);
    PubSub::new(login, stream).await
}

fn timed_out(_elapsed: tokio::time::error::Elapsed) -> RedisError {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

async fn dial(address: &Address) -> RedisResult<Box<dyn Stream>> {
    Ok(match address.addr() {
        ConnectionAddr::Tcp(host, port) => Box::new(tcp(host, *port).await?),
        #[cfg(feature = "tls")]
        ConnectionAddr::TcpTls { host, port, insecure: false, .. } => {
            Box::new(address.tls().connect(host, tcp(host, *port).await?).await?)
        }
        #[cfg(unix)]
        ConnectionAddr::Unix(path) => Box::new(tokio::net::UnixStream::connect(path).await?),
        _ => {
            return Err(
                (ErrorKind::InvalidClientConfig, "a kind of address that this build does not have").into()
            );
        }
    })
}

/// To the first of its addresses that answers.
async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses: Vec<_> = tokio::net::lookup_host((host, port)).await?.collect();
    if addresses.is_empty() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let connecting = addresses.into_iter().map(|address| Box::pin(TcpStream::connect(address)));
    let (stream, _others) = select_ok(connecting).await?;
    // A look-up does not wait for the answer to the one before.
    stream.set_nodelay(true)?;
    #[cfg(unix)]
    watch_peer(&stream)?;
    Ok(stream)
}

/// Has the kernel end a connection whose other side is gone without a word, whether or not something is sent.
#[cfg(unix)]
fn watch_peer(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;

    sockopt::set_socket_keepalive(stream, true)?;
    #[cfg(target_os = "linux")]
    {
        sockopt::set_tcp_keepidle(stream, SILENT_FOR)?;
        sockopt::set_tcp_keepintvl(stream, SILENT_FOR / 5)?;
        sockopt::set_tcp_keepcnt(stream, 3)?;
        sockopt::set_tcp_user_timeout(stream, u32::try_from(SILENT_FOR.as_millis()).unwrap_or(u32::MAX))?;
    }
    Ok(())
}

pub(crate) fn failed(error: RedisError) -> RemoteError {
    if error.is_timeout() {
        RemoteError::Timeout
    } else if error.is_connection_dropped() || error.is_connection_refusal() {
        RemoteError::Disconnected
    } else if is_unusable(&error) {
        RemoteError::Unusable(Arc::new(error))
    } else if matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) {
        // By its kind: of a pipeline's refusal the client knows no code where the code is not one of its own, as `OOM`.
        RemoteError::Refused(Arc::new(error))
    } else {
        RemoteError::Failed(Arc::new(error))
    }
}

/// What a server says that is of no use to anybody, whatever it is asked for. Of a pipeline's errors the client has no code, but
/// the names of those that it knows.
fn is_unusable(error: &RedisError) -> bool {
    const CODES: [&str; 5] = ["READONLY", "LOADING", "MASTERDOWN", "NOAUTH", "WRONGPASS"];
    const NAMES: [&str; 3] = ["ReadOnly", "BusyLoading", "MasterDown"];
    let text = error.to_string();
    error.kind() == ErrorKind::AuthenticationFailed
        || error.code().is_some_and(|code| CODES.contains(&code))
        || CODES.iter().chain(&NAMES).any(|said| text.contains(said))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use rustix::net::sockopt;

    use super::*;

    #[tokio::test]
    async fn the_kernel_watches_whoever_is_on_the_other_side() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = tcp("127.0.0.1", listener.local_addr().unwrap().port()).await.unwrap();
        assert!(stream.nodelay().unwrap() && sockopt::socket_keepalive(&stream).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&stream), Ok(SILENT_FOR));
        // Gone by twice that time, where nothing is sent; where something is, by that time.
        let asked = sockopt::tcp_keepintvl(&stream).unwrap() * sockopt::tcp_keepcnt(&stream).unwrap();
        assert_eq!(asked, SILENT_FOR * 3 / 5);
        assert_eq!(sockopt::tcp_user_timeout(&stream).map(u128::from), Ok(SILENT_FOR.as_millis()));
    }
}
