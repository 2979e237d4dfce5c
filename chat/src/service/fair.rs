//! Shares of what all companies use. What needs Postgres or Redis waits for a turn of its company: however much one asks for,
//! connections are left for the others. What L1 answers needs none.
//!
//! A large answer that had to be fetched is work for Postgres, Redis and this process long before and after its turn. So it makes the
//! company's next turns wait.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use perto::{Cache, Key, Read, ReadOptions, Value};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Fetched for nothing.
const SMALL: usize = 64 << 10;
/// What a company may fetch of the rest in a second.
const LARGE_A_SECOND: u32 = 4 << 20;

tokio::task_local! {
    /// Whose turns those of the request are, in its task. None for an admin.
    static ASKING: Option<(Turns, i64)>;
}

/// The turns of each company that has waited for one of late.
#[derive(Debug, Clone)]
pub(crate) struct Turns {
    each: usize,
    by_company: Arc<Mutex<HashMap<i64, Arc<Company>>>>,
}

#[derive(Debug)]
struct Company {
    turns: Arc<Semaphore>,
    /// Before that no turn begins: what was fetched was large.
    busy_until: Mutex<Option<Instant>>,
}

impl Company {
    fn is_busy(&self) -> bool {
        self.busy_until.lock().is_some_and(|until| until > Instant::now())
    }
}

impl Turns {
    /// Each company has so many at a time.
    pub(crate) fn new(each: usize) -> Self {
        Self { each: each.max(1), by_company: Arc::default() }
    }

    /// Runs a request of a company, or of an admin, who has any number of turns.
    pub(crate) async fn asking<T>(&self, company: Option<i64>, request: impl Future<Output = T>) -> T {
        ASKING.scope(company.map(|company| (self.clone(), company)), request).await
    }

    fn of(&self, company: i64) -> Arc<Company> {
        let new = || {
            let turns = Arc::new(Semaphore::new(self.each));
            Arc::new(Company { turns, busy_until: Mutex::default() })
        };
        Arc::clone(self.by_company.lock().entry(company).or_insert_with(new))
    }

    /// Forgets companies that ask for nothing. To be called now and then.
    pub(crate) fn sweep(&self) {
        let in_use =
            |company: &Arc<Company>| Arc::strong_count(company) + Arc::strong_count(&company.turns) > 2;
        self.by_company.lock().retain(|_, company| in_use(company) || company.is_busy());
    }
}

/// Looked up where it is needed: what L1 answers needs no turn.
fn asking() -> Option<Arc<Company>> {
    ASKING.try_with(|asking| asking.as_ref().map(|(turns, company)| turns.of(*company))).ok().flatten()
}

/// A turn, until it is dropped. The request's own limit bounds the wait, and the company's connections the number of those who
/// wait. Nobody may wait for a second one: all might hold the first.
pub(crate) async fn turn() -> Option<OwnedSemaphorePermit> {
    let company = asking()?;
    let turn = Arc::clone(&company.turns).acquire_owned().await.ok()?;
    let until = *company.busy_until.lock();
    if let Some(until) = until {
        tokio::time::sleep_until(until).await;
    }
    Some(turn)
}

/// So much was fetched for whoever asks. What is large makes the company's next turns wait.
pub(crate) fn fetched(bytes: usize) {
    let large = u32::try_from(bytes.saturating_sub(SMALL)).unwrap_or(u32::MAX);
    if large > 0
        && let Some(company) = asking()
    {
        let takes = Duration::from_secs(1).mul_f64(f64::from(large) / f64::from(LARGE_A_SECOND));
        let (mut until, now) = (company.busy_until.lock(), Instant::now());
        *until = Some(until.map_or(now, |until| until.max(now)) + takes);
    }
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
    if let Some(read) = cache.get_if_cached_with(key, options) {
        return Ok(read);
    }
    let _turn = turn().await;
    cache.get_with(key, options).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_fetches_what_is_large_waits_before_its_next_turns_and_nobody_else_does() {
        let turns = Turns::new(4);
        let began = Instant::now();
        let asking = async |company, bytes| {
            let work = async {
                let _turn = turn().await;
                fetched(bytes);
                began.elapsed()
            };
            turns.asking(company, work).await
        };
        let mib = 1 << 20;
        for (company, bytes, at_ms) in [
            (Some(1), SMALL, 0),
            (Some(1), SMALL + 2 * mib, 0),
            (Some(2), SMALL, 0),
            (Some(1), SMALL + mib, 500),
            (None, 9 * mib, 500),
            (None, 0, 500),
            (Some(1), 0, 750),
            (Some(1), 0, 750),
        ] {
            assert_eq!(asking(company, bytes).await, Duration::from_millis(at_ms), "{company:?}, {bytes}");
        }
        turns.asking(Some(1), async { fetched(SMALL + mib) }).await;
        turns.sweep();
        assert_eq!(turns.by_company.lock().len(), 1, "what it has to wait for is not forgotten");
        tokio::time::sleep(Duration::from_millis(250)).await;
        turns.sweep();
        assert!(turns.by_company.lock().is_empty());
    }

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
