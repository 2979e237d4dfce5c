//! The dashboard: a page of its own files, and a stream of what the whole fleet does.
//!
//! One task of the instance looks at the fleet, once a second while somebody watches and every ten seconds otherwise, and
//! keeps an hour of it. All who watch are sent the same bytes; who is slow misses some, and nothing is queued for it. The
//! page may be loaded by anybody, its figures are for admins.

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use history::History;

mod assets;
mod history;
mod pace;
mod sampler;
mod shown;
mod stream;

pub(super) use assets::routes as pages;
pub(super) use sampler::run;
pub(super) use stream::routes;

/// Streams at once; more are refused. A page that nobody sees has none.
const MAX_STREAMS: usize = 64;

/// What has been seen, and who watches.
#[derive(Debug)]
pub(crate) struct Dashboard {
    history: Mutex<History>,
    /// The last frame.
    frames: watch::Sender<bytes::Bytes>,
    /// Somebody has begun to watch.
    watched: Notify,
    places: std::sync::Arc<Semaphore>,
    /// No stream goes on after it.
    ending: CancellationToken,
}

impl Dashboard {
    pub(super) fn new(ending: CancellationToken) -> Self {
        Self {
            history: Mutex::default(),
            frames: watch::Sender::default(),
            watched: Notify::new(),
            places: std::sync::Arc::new(Semaphore::new(MAX_STREAMS)),
            ending,
        }
    }
}
