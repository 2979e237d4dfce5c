//! Connections: who may hold how many, how long their heads may take, how fast answers must be taken, how they end.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

pub(super) use files::fitting;
use heads::HeadTimer;
use patience::Impatient;
pub(super) use places::{Guest, Places};

mod coming;
mod files;
mod heads;
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

/// What answers requests. Each connection has one.
pub(super) trait Answering: Clone + Send + Sync + 'static {
    fn answer(&self, request: Request, guest: &Guest) -> impl Future<Output = Response> + Send;
}

/// Serves until `end` completes; then takes no more requests, and gives those in progress `grace` to be answered.
/// Returns whether all were.
pub(super) async fn serve(
    listener: TcpListener,
    answering: impl Answering,
    places: Arc<Places>,
    grace: Duration,
    end: impl Future<Output = ()>,
) -> bool {
    let (files, serving, graceful) =
        (Arc::new(Semaphore::new(files(&places))), TaskTracker::new(), GracefulShutdown::new());
    let mut http = http1::Builder::new();
    http.header_read_timeout(HEAD_LIMIT).max_buf_size(BUFFER);
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
            let guest = places.admit(address.ip());
            let (answering, reading, ending) = (answering.clone(), serving.clone(), graceful.watcher());
            let mut http = http.clone();
            http.timer(HeadTimer::default());
            serving.spawn(async move {
                let _file = file;
                // Requests borrow what their connection has: all cores would write to the counts of its references.
                let answered = service_fn(async |request: hyper::Request<Incoming>| {
                    let request = request.map(|body| coming::body(body, &reading));
                    Ok::<_, Infallible>(answering.answer(request, &guest).await)
                });
                let stream = TokioIo::new(Impatient::new(stream, reset));
                let connection = pin!(ending.watch(http.serve_connection(stream, answered)));
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
