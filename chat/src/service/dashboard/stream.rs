//! The stream: what has been seen in the last hour, then how it is, second by second. For admins.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::MAX_STREAMS;
use crate::service::Service;
use crate::service::access::Admin;
use crate::service::problem::Problem;

/// How long nothing may be sent: so that each end hears of it when the other is gone.
const QUIET: Duration = Duration::from_secs(5);
/// Who finds no place may come back then.
const FULL: Duration = Duration::from_secs(10);

pub(in crate::service) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(watch_all))
}

/// Everything that the dashboard shows, as server-sent events that don't end
///
/// First `history`: an array of points for the last five minutes, one a second while somebody watched, and one of the last hour,
/// every ten seconds. Then `now` once a second: the instances, caches, alerts and imports as they are, and the points
/// that have been added. Ends with the service; a 503 where too many watch already.
#[utoipa::path(get, path = "/api/v1/cache/stream", tag = "cache",
    responses((status = 200, body = String, content_type = "text/event-stream")))]
async fn watch_all(State(service): State<Arc<Service>>, _: Admin) -> Result<Response, Problem> {
    let dashboard = &service.dashboard;
    let place = Arc::clone(&dashboard.places).try_acquire_owned().map_err(|_none_left| {
        Problem::unavailable(format!("{MAX_STREAMS} watch already: close a dashboard")).retry_after(FULL)
    })?;
    let mut frames = dashboard.frames.subscribe();
    frames.mark_unchanged();
    dashboard.watched.notify_one();
    let history = format!("event: history\ndata: {}\n\n", dashboard.history.lock().json());
    let was_open = service.access.is_open();
    let viewer = Viewer {
        history: Some(history.into()),
        frames,
        was_open,
        service: Arc::clone(&service),
        _place: place,
    };
    let headers = [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-store"),
        // Proxies must not collect it.
        (axum::http::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(stream::unfold(viewer, next))).into_response())
}

/// Someone who watches. Dropped with the connection.
struct Viewer {
    history: Option<Bytes>,
    frames: watch::Receiver<Bytes>,
    /// Admitted without a key.
    was_open: bool,
    service: Arc<Service>,
    _place: OwnedSemaphorePermit,
}

async fn next(mut viewer: Viewer) -> Option<(Result<Bytes, Infallible>, Viewer)> {
    if let Some(history) = viewer.history.take() {
        return Some((Ok(history), viewer));
    }
    let changed = tokio::select! {
        biased;
        () = viewer.service.dashboard.ending.cancelled() => return None,
        changed = tokio::time::timeout(QUIET, viewer.frames.changed()) => changed,
    };
    // Who needed no key then needs one now.
    if viewer.was_open && !viewer.service.access.is_open() {
        return None;
    }
    let frame = match changed {
        Ok(Ok(())) => viewer.frames.borrow_and_update().clone(),
        Ok(Err(_ended)) => return None,
        Err(_quiet) => Bytes::from_static(b": nothing new\n\n"),
    };
    Some((Ok(frame), viewer))
}
