//! Memory of what is under way: bodies that come, and answers that clients have yet to take. A client may take its time, so
//! how many there are at once is bounded in bytes, for the instance and for each company.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse as _, Response};
use hyper::body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;

use super::limits::Limit;
use super::problem::Problem;

/// What is smaller is not counted: the number of connections bounds it.
const SMALL: usize = 16 * 1024;
/// What one that is made while it is sent has in memory at a time, at most.
pub(crate) const STREAMED: usize = 256 * 1024;
/// A company may have so much of the whole.
const SHARE: usize = 4;

/// Bytes for what is under way.
#[derive(Debug)]
pub(crate) struct Budget {
    most: usize,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    all: usize,
    by_company: HashMap<i64, usize>,
}

/// Bytes in use until this is dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    budget: Arc<Budget>,
    company: Option<i64>,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, used: Mutex::default() })
    }

    /// Bytes in use now.
    pub(crate) fn used(&self) -> usize {
        self.used.lock().all
    }

    pub(crate) const fn most(&self) -> usize {
        self.most
    }

    /// Takes bytes for a company, or for an admin. None are needed for what is small.
    ///
    /// # Errors
    /// The limit that leaves none.
    pub(crate) fn take(
        self: &Arc<Self>,
        company: Option<i64>,
        bytes: usize,
    ) -> Result<Option<Hold>, Problem> {
        if bytes <= SMALL {
            return Ok(None);
        }
        let mut used = self.used.lock();
        if used.all.saturating_add(bytes) > self.most {
            return Err(Problem::limit(
                Limit::Memory,
                format!("what this instance sends and receives takes all of its {} MiB", self.most >> 20),
            ));
        }
        if let Some(company) = company {
            let (own, most) = (used.by_company.entry(company).or_default(), self.most / SHARE);
            if own.saturating_add(bytes) > most {
                return Err(Problem::limit(
                    Limit::CompanyMemory,
                    format!("what this company sends and receives takes all of its {} MiB", most >> 20),
                ));
            }
            *own += bytes;
        }
        used.all += bytes;
        drop(used);
        Ok(Some(Hold { budget: Arc::clone(self), company, bytes }))
    }

    /// The answer, counted until the client has taken it; or a refusal, where there is no memory for it.
    pub(crate) fn counted(self: &Arc<Self>, company: Option<i64>, response: Response) -> Response {
        let bytes =
            response.body().size_hint().exact().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
        match self.take(company, bytes.unwrap_or(STREAMED)) {
            Ok(None) => response,
            Ok(Some(hold)) => {
                let hold = Arc::new(hold);
                response.map(|body| Body::new(Counted { body, hold }))
            }
            Err(problem) => problem.into_response(),
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut used = self.budget.used.lock();
        used.all -= self.bytes;
        if let Some(company) = self.company
            && let Some(own) = used.by_company.get_mut(&company)
        {
            *own -= self.bytes;
            if *own == 0 {
                used.by_company.remove(&company);
            }
        }
    }
}

/// A body each of whose pieces keeps its bytes counted for as long as it is somewhere.
struct Counted {
    body: Body,
    hold: Arc<Hold>,
}

/// A piece on its way out.
struct Piece {
    bytes: Bytes,
    _hold: Arc<Hold>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let keep = |bytes| Bytes::from_owner(Piece { bytes, _hold: Arc::clone(&self.hold) });
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(keep))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use futures_util::StreamExt as _;

    use super::*;

    const MIB: usize = 1 << 20;

    fn of(bytes: usize) -> Response {
        Response::new(Body::from(vec![7; bytes]))
    }

    #[tokio::test]
    async fn an_answer_is_counted_until_its_last_byte_is_gone() {
        let budget = Budget::new(8 * MIB);
        let answer = budget.counted(Some(1), of(MIB));
        assert_eq!(budget.used(), MIB);
        let mut pieces = answer.into_body().into_data_stream();
        let piece = pieces.next().await.unwrap().unwrap();
        assert!(pieces.next().await.is_none());
        drop(pieces);
        let rest = piece.slice(MIB - 1..);
        drop(piece);
        assert_eq!((rest.len(), budget.used()), (1, MIB), "a part of it is still there");
        drop(rest);
        assert_eq!(budget.used(), 0);
        assert!(budget.used.lock().by_company.is_empty());
    }

    #[tokio::test]
    async fn a_company_has_a_quarter_and_the_instance_no_more_than_all() {
        let budget = Budget::new(8 * MIB);
        let taken: Vec<Response> = (0..3).map(|_| budget.counted(Some(1), of(MIB))).collect();
        let statuses: Vec<StatusCode> = taken.iter().map(Response::status).collect();
        assert_eq!(statuses, [StatusCode::OK, StatusCode::OK, StatusCode::TOO_MANY_REQUESTS]);
        assert_eq!(taken[2].extensions().get(), Some(&Limit::CompanyMemory));
        let small = budget.counted(Some(1), of(SMALL));
        assert_eq!((small.status(), budget.used()), (StatusCode::OK, 2 * MIB));
        let others: Vec<Response> = (2..9).map(|company| budget.counted(Some(company), of(MIB))).collect();
        assert!(others[..6].iter().all(|other| other.status() == StatusCode::OK));
        assert_eq!(others[6].extensions().get(), Some(&Limit::Memory));
        assert_eq!(budget.counted(None, of(MIB)).status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(taken);
        assert_eq!(budget.counted(None, of(2 * MIB)).status(), StatusCode::OK);
        drop(others);
        assert_eq!(budget.used(), 0);
    }
}
