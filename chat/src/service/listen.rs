//! Connections: who may hold how many, how long their heads may take, how fast answers must be taken, how they end.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use coming::Coming;
pub(super) use files::fitting;
use patience::Impatient;
pub(super) use places::{Guest, Places};

mod coming;
mod files;
mod patience;
mod places;

/// How long the head of a request may take, and how long a connection may be idle.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Longest head of a request, and what is read ahead of a body.
const BUFFER: usize = 32 * 1024;
/// What the system may keep of an answer that can't be sent yet: the rest waits here, where it is counted.
const UNSENT: u32 = 64 * 1024;
/// Connections that were told to end, and have not yet.
const ENDING: usize = 64;
/// Pause after a connection that could not be accepted: there may be no file left for it.
const PAUSE: Duration = Duration::from_millis(50);

/// Files that connections may take at most.
pub(super) fn files(places: &Places) -> usize {
    places.most() + ENDING
}

/// Serves until `end` completes; then takes no more requests, and gives those in progress `grace` to be answered.
/// Returns whether all were.
pub(super) async fn serve<A, F>(
    listener: TcpListener,
    answer: A,
    places: Arc<Places>,
    grace: Duration,
    end: impl Future<Output = ()>,
) -> bool
where
    A: Fn(Request, Arc<Guest>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response> + Send,
{
    let (files, serving, graceful) =
        (Arc::new(Semaphore::new(files(&places))), TaskTracker::new(), GracefulShutdown::new());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(BUFFER);
    let accepting = async {
        loop {
            let Ok(file) = Arc::clone(&files).acquire_owned().await else { return };
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a connection could not be accepted"
                    );
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            set_up(&stream);
            let guest = Arc::new(places.admit(address.ip()));
            let (answer, asking, reading) = (answer.clone(), Arc::clone(&guest), serving.clone());
            let answered = service_fn(move |request: hyper::Request<Incoming>| {
                let coming = |body| Body::new(Coming::new(body, reading.clone()));
                let answering = answer(request.map(coming), Arc::clone(&asking));
                async move { Ok::<_, Infallible>(answering.await) }
            });
            let stream = TokioIo::new(Impatient::new(stream, reset));
            let connection = graceful.watch(http.serve_connection(stream, answered));
            serving.spawn(async move {
                let _file = file;
                let connection = pin!(connection);
                tokio::select! {
                    ended = connection => if let Err(error) = ended {
                        tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended");
                    },
                    () = guest.unwelcome() => {}
                }
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        () = end => {}
    }
    drop(listener);
    serving.close();
    tokio::time::timeout(grace, graceful.shutdown()).await.is_ok()
}

/// What can't be set costs time or memory, and no answer.
fn set_up(stream: &TcpStream) {
    // Small answers must not wait for each other's acknowledgements.
    drop(stream.set_nodelay(true));
    #[cfg(any(target_os = "linux", target_os = "android"))]
    drop(SockRef::from(stream).set_tcp_notsent_lowat(UNSENT));
}

/// Has the system forget what was not taken: it would keep it for minutes.
fn reset(stream: &TcpStream) {
    drop(stream.set_zero_linger());
}

/// The answer of the router.
pub(super) async fn routed(router: Router, request: Request) -> Response {
    match TowerToHyperService::new(router).call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
