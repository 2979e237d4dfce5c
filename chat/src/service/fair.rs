//! Shares of what all companies use. What needs Postgres or Redis waits for a turn of its company: however much one asks for,
//! connections are left for the others. What L1 answers needs none.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use perto::{Cache, Key, Read, ReadOptions, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

tokio::task_local! {
    /// The turns of whoever asks, in the task of the request. None for an admin.
    static ASKING: Option<Arc<Semaphore>>;
}

/// The turns of each company that has asked of late.
#[derive(Debug)]
pub(crate) struct Turns {
    each: usize,
    by_company: Mutex<HashMap<i64, Arc<Semaphore>>>,
}

impl Turns {
    /// Each company has so many at a time.
    pub(crate) fn new(each: usize) -> Self {
        Self { each: each.max(1), by_company: Mutex::default() }
    }

    /// Runs a request of a company, or of an admin, who has any number of turns.
    pub(crate) async fn asking<T>(&self, company: Option<i64>, request: impl Future<Output = T>) -> T {
        let new = || Arc::new(Semaphore::new(self.each));
        let turns =
            company.map(|company| Arc::clone(self.by_company.lock().entry(company).or_insert_with(new)));
        ASKING.scope(turns, request).await
    }

    /// Forgets companies that ask for nothing. To be called now and then.
    pub(crate) fn sweep(&self) {
        self.by_company.lock().retain(|_, turns| Arc::strong_count(turns) > 1);
    }
}

/// A turn, until it is dropped. The request's own limit bounds the wait, and the company's connections the number of those who
/// wait. Nobody may wait for a second one: all might hold the first.
pub(crate) async fn turn() -> Option<OwnedSemaphorePermit> {
    let turns = ASKING.try_with(Clone::clone).ok().flatten()?;
    turns.acquire_owned().await.ok()
}

/// Reads a key: from L1 at once, else in a turn.
///
/// # Errors
/// Those of [`Cache::get_with`].
pub(crate) async fn read<K: Key, V: Value>(
    cache: &Cache<K, V>,
    key: &K,
    options: ReadOptions,
) -> Result<Read<V>, perto::Error> {
    if options.at_least.is_none()
        && let Some(read) = cache.get_if_cached(key)
    {
        return Ok(read);
    }
    let _turn = turn().await;
    cache.get_with(key, options).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_company_waits_for_its_own_turns_and_for_nobody_elses() {
        let turns = Turns::new(2);
        let second = Duration::from_secs(1);
        let asking = async |company| {
            let work = async {
                let _turn = turn().await;
                tokio::time::sleep(second).await;
                tokio::time::Instant::now()
            };
            turns.asking(company, work).await
        };
        let began = tokio::time::Instant::now();
        let greedy = futures_util::future::join_all((0..6).map(|_| asking(Some(1))));
        let admin = futures_util::future::join_all((0..6).map(|_| asking(None)));
        let (greedy, modest, admin) = tokio::join!(greedy, asking(Some(2)), admin);
        let after = |ended: tokio::time::Instant| (ended - began).as_secs();
        assert_eq!(greedy.into_iter().map(after).collect::<Vec<_>>(), [1, 1, 2, 2, 3, 3]);
        assert!(after(modest) == 1 && admin.into_iter().all(|ended| after(ended) == 1));
        turns.sweep();
        assert!(turns.by_company.lock().is_empty());
        assert!(turn().await.is_none(), "outside of a request");
    }
}
