//! Connections: how many, how long their heads may take, and how they end.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

/// How long the head of a request may take, and how long a connection may be idle.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Pause after a connection that could not be accepted: there may be no file left for it.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves until `end` completes; then takes no more requests, and gives those in progress `grace` to be answered.
/// Returns whether all were.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    connections: usize,
    grace: Duration,
    end: impl Future<Output = ()>,
) -> bool {
    let (places, serving, graceful) =
        (Arc::new(Semaphore::new(connections)), TaskTracker::new(), GracefulShutdown::new());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).pipeline_flush(true);
    let accepting = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a connection could not be accepted"
                    );
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            // Small answers must not wait for each other's acknowledgements.
            drop(stream.set_nodelay(true));
            let service = TowerToHyperService::new(router.clone());
            let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
            serving.spawn(async move {
                let _place = place;
                if let Err(error) = connection.await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended");
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
