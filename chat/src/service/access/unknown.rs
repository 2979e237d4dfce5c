//! Keys that this instance has not seen: many at a time are looked up in one statement, so that guesses keep nobody waiting whose
//! key is right, and cost Postgres little. What turns out to be none enters no cache.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::service::database::Database;
use crate::service::keys::{self, KeyHash};

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

    /// Answers until the end.
    pub(crate) async fn answer(&self, database: &Database, ending: &CancellationToken) {
        let Some(mut asked) = self.asked.lock().take() else { return };
        let mut batch = Vec::with_capacity(BATCH);
        let answering = async {
            while asked.recv_many(&mut batch, BATCH).await > 0 {
                // Who has gone needs no answer.
                batch.retain(|asked| !asked.answer.is_closed());
                let hashes: Vec<KeyHash> = batch.iter().map(|asked| asked.key).collect();
                let looking = tokio::time::timeout(LIMIT, keys::in_use(database, &hashes));
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
