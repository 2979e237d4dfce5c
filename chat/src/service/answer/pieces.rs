//! A body in pieces that lie somewhere already, so that none is copied.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};

/// One piece, or two.
#[derive(Debug, Clone)]
pub(crate) struct Pieces {
    first: Bytes,
    second: Bytes,
}

impl Pieces {
    pub(crate) fn of([first, second]: [Bytes; 2]) -> Self {
        Self { first, second }
    }

    fn bytes(&self) -> usize {
        self.first.len() + self.second.len()
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Bytes> {
        [&self.first, &self.second].into_iter()
    }

    #[cfg(test)]
    pub(crate) fn joined(&self) -> Vec<u8> {
        [&self.first[..], &self.second[..]].concat()
    }
}

impl From<Bytes> for Pieces {
    fn from(whole: Bytes) -> Self {
        Self { first: whole, second: Bytes::new() }
    }
}

impl From<Pieces> for Body {
    fn from(pieces: Pieces) -> Self {
        if pieces.second.is_empty() { Self::from(pieces.first) } else { Self::new(pieces) }
    }
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = if self.first.is_empty() {
            std::mem::take(&mut self.second)
        } else {
            std::mem::take(&mut self.first)
        };
        Poll::Ready((!next.is_empty()).then(|| Ok(Frame::data(next))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_are_one_body_of_their_length() {
        for (pieces, whole) in [
            (Pieces::of([Bytes::from_static(b"a,"), Bytes::from_static(b"b]")]), &b"a,b]"[..]),
            (Pieces::from(Bytes::from_static(b"whole")), b"whole"),
            (Pieces::from(Bytes::new()), b""),
        ] {
            let body = Body::from(pieces);
            let size = hyper::body::Body::size_hint(&body).exact();
            assert_eq!(size, Some(whole.len() as u64));
            assert_eq!(axum::body::to_bytes(body, 10).await.unwrap(), whole);
        }
    }
}
