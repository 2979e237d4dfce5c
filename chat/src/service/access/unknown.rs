//! Keys that this instance has not seen: many at a time are looked up in one statement, so that guesses keep nobody waiting whose
//! key is right, and cost Postgres little. What turns out to be none enters no cache.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::service::keys::KeyHash;

/// Keys of one statement.
const BATCH: usize = 500;
/// Those that wait for one.
const WAITING: usize = 4 * BATCH;
/// From one statement to the next: guesses are 20 statements a second, however many they are.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a statement may take.
const LIMIT: Duration = Duration::from_secs(2);

/// Where a key is asked for.
#[derive(Debug)]
pub(crate) struct Unknown {
    asking: mpsc::Sender<Asked>,
    /// Until somebody answers.
    asked: Mutex<Option<mpsc::Receiver<Asked>>>,
}

#[derive(Debug)]
struct Asked {
    key: KeyHash,
    /// Whether it is in use. Dropped where Postgres can't say.
    answer: oneshot::Sender<bool>,
}

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Looked {
    InUse,
    NotInUse,
    /// Postgres can't say.
    NotKnown,
    /// Too many wait.
    TooMany,
}

impl Default for Unknown {
    fn default() -> Self {
        let (asking, asked) = mpsc::channel(WAITING);
        Self { asking, asked: Mutex::new(Some(asked)) }
    }
}

impl Unknown {
    pub(crate) async fn look(&self, key: KeyHash) -> Looked {
        let (answer, answered) = oneshot::channel();
        if self.asking.try_send(Asked { key, answer }).is_err() {
            return Looked::TooMany;
        }
        match answered.await {
            Ok(true) => Looked::InUse,
            Ok(false) => Looked::NotInUse,
            Err(_dropped) => Looked::NotKnown,
        }
    }

    /// Answers until the end. `in_use` says which of some keys are, in one statement.
    pub(crate) async fn answer<E, F: Future<Output = Result<HashSet<KeyHash>, E>>>(
        &self,
        in_use: impl Fn(Vec<KeyHash>) -> F,
        ending: &CancellationToken,
    ) {
        let Some(mut asked) = self.asked.lock().take() else { return };
        let mut batch = Vec::with_capacity(BATCH);
        let answering = async {
            while asked.recv_many(&mut batch, BATCH).await > 0 {
                // Who has gone needs no answer.
                batch.retain(|asked| !asked.answer.is_closed());
                let hashes: Vec<KeyHash> = batch.iter().map(|asked| asked.key).collect();
                let looking = tokio::time::timeout(LIMIT, in_use(hashes));
                match looking.await {
                    Ok(Ok(known)) => batch.drain(..).for_each(|Asked { key, answer }| {
                        // Nobody may be waiting any more.
                        let _ = answer.send(known.contains(&key));
                    }),
                    _ => batch.clear(),
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::select! {
            () = answering => {}
            () = ending.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use futures_util::future::join_all;
    use tokio::time::Instant;

    use super::*;

    fn key(number: usize) -> KeyHash {
        KeyHash::of(&number.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn keys_are_looked_up_many_at_a_time_with_a_pause_between_and_those_too_many_not_at_all() {
        let (unknown, ending, began) = (Unknown::default(), CancellationToken::new(), Instant::now());
        let statements = Mutex::new(Vec::new());
        let in_use = |keys: Vec<KeyHash>| {
            statements.lock().push((began.elapsed().as_millis(), keys.len()));
            ready(Ok::<_, ()>(HashSet::from([key(7)])))
        };
        let asking = async {
            let looked = join_all((0..2_003).map(|number| unknown.look(key(number)))).await;
            ending.cancel();
            looked
        };
        let (looked, ()) = tokio::join!(asking, unknown.answer(in_use, &ending));
        let count = |what| looked.iter().filter(|looked| **looked == what).count();
        assert_eq!((count(Looked::InUse), looked[7]), (1, Looked::InUse));
        assert_eq!((count(Looked::NotInUse), count(Looked::TooMany)), (1_999, 3));
        assert_eq!(*statements.lock(), [(0, 500), (50, 500), (100, 500), (150, 500)]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_gone_is_not_looked_up_and_what_takes_too_long_is_not_known() {
        let (unknown, ending, began) = (Unknown::default(), CancellationToken::new(), Instant::now());
        drop(tokio::time::timeout(Duration::ZERO, unknown.look(key(1))).await);
        let asked = Mutex::new(Vec::new());
        let in_use = |keys: Vec<KeyHash>| {
            asked.lock().extend(keys);
            pending::<Result<HashSet<KeyHash>, ()>>()
        };
        let asking = async {
            let looked = unknown.look(key(2)).await;
            ending.cancel();
            looked
        };
        let (looked, ()) = tokio::join!(asking, unknown.answer(in_use, &ending));
        assert_eq!((looked, began.elapsed()), (Looked::NotKnown, LIMIT));
        assert_eq!(*asked.lock(), [key(2)]);
    }
}
