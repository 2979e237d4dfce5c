//! Bodies that come. A client that is still writing when the connection ends may never see its answer. So what nobody
//! reads of a body is read on for a little after the answer, and the connection ends only where that is too much.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use futures_util::StreamExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio_util::task::TaskTracker;

/// Read on at most.
const MOST: usize = 8 << 20;
const LIMIT: Duration = Duration::from_secs(1);

/// The body of a request. Most bring none, and need nothing of this.
pub(super) fn body(body: Incoming, reading: &TaskTracker) -> axum::body::Body {
    if body.is_end_stream() {
        return axum::body::Body::empty();
    }
    axum::body::Body::new(Coming { body: Some(body), reading: reading.clone() })
}

/// A body, read on where it is dropped before its end.
struct Coming {
    body: Option<Incoming>,
    reading: TaskTracker,
}

impl Body for Coming {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            self.reading.spawn(tokio::time::timeout(LIMIT, read_on(body)));
        }
    }
}

async fn read_on(body: Incoming) {
    let (mut rest, mut left) = (axum::body::Body::new(body).into_data_stream(), MOST);
    while let Some(Ok(piece)) = rest.next().await {
        left = left.saturating_sub(piece.len());
        if left == 0 {
            return;
        }
    }
}
