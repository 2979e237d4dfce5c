//! What a program asks of a cache.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::bed::{Page, Source};

/// How long values live where a cache wants to know: longer than any scenario.
pub const TTL: Duration = Duration::from_secs(1_800);
/// How long to wait for Redis, where a peer lets us say so, and how often to try again.
pub const PATIENCE: Duration = Duration::from_millis(500);
pub const RETRIES: usize = 1;

/// Where one instance of a cache finds the others.
#[derive(Clone)]
pub struct Place {
    pub source: Arc<Source>,
    pub redis: String,
}

/// One instance of a cache, set up as its own documents say.
pub trait Peer: Sized + Send + Sync + 'static {
    /// What a read hands out.
    type Answer: Send + 'static;
    /// What is known of a write between its commit and its being told.
    type Written: Send + 'static;

    /// Why it is left out where a second tier or a second instance is needed.
    const ALONE: Option<&'static str> = None;

    fn start(place: Place) -> impl Future<Output = Result<Self>> + Send;

    /// A read, through the loader where nothing is cached.
    fn get(&self, key: &String) -> impl Future<Output = Result<Self::Answer>> + Send;

    fn page(answer: &Self::Answer) -> Result<&Page>;

    /// Changes the row. When it returns, that is committed.
    fn update(&self, key: &String) -> impl Future<Output = Result<Self::Written>> + Send;

    /// What a program does after its write: tells this cache and the others.
    fn tell(&self, key: &String, written: Self::Written) -> impl Future<Output = Result<()>> + Send;

    /// Ends what would go on by itself.
    fn stop(self) -> impl Future<Output = ()> + Send {
        async {}
    }
}
