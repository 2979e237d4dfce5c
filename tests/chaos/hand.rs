//! Somebody who types SQL: writes straight to the primary all the time, past the proxies, and knows nothing of Perto. So
//! rows change also while every instance is cut off.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::load::{HOT, RESERVED, is_refused, update};
use crate::record::{Kind, Record, now_ns};

/// Its own values.
const FIRST_VALUE: u64 = 1 << 36;
/// Rows that are left to the schedule: the first, and the last of the reserved ones.
const LEFT: u32 = 2;
const PAUSE: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(2);

pub(crate) struct Hand {
    primary: Arc<Mutex<String>>,
    writes: Arc<Mutex<Vec<Record>>>,
    _writing: JoinSet<()>,
}

impl Hand {
    pub(crate) fn start(primary: String) -> Self {
        let (primary, writes) = (Arc::new(Mutex::new(primary)), Arc::new(Mutex::new(Vec::new())));
        let mut writing = JoinSet::new();
        writing.spawn(write_on(Arc::clone(&primary), Arc::clone(&writes)));
        Self { primary, writes, _writing: writing }
    }

    /// It goes on there.
    pub(crate) fn follow(&self, primary: String) {
        *self.primary.lock() = primary;
    }

    pub(crate) fn writes(&self) -> Vec<Record> {
        self.writes.lock().clone()
    }
}

async fn write_on(primary: Arc<Mutex<String>>, writes: Arc<Mutex<Vec<Record>>>) {
    let mut value = FIRST_VALUE;
    loop {
        let place = primary.lock().clone();
        if let Ok(Ok(mut connection)) = timeout(LIMIT, PgConnection::connect(&place)).await {
            let begun = sqlx::raw_sql("set search_path = chaos; set lock_timeout = '1s'");
            if begun.execute(&mut connection).await.is_ok() {
                while *primary.lock() == place && write(&mut connection, value, &writes).await {
                    value += 1;
                    tokio::time::sleep(PAUSE).await;
                }
            }
            value += 1;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether the connection is good for more.
async fn write(connection: &mut PgConnection, value: u64, writes: &Mutex<Vec<Record>>) -> bool {
    let key = HOT + 1 + u32::try_from(value % u64::from(RESERVED - LEFT)).expect("a row");
    let intent = Record { value, ..Record::new(Kind::Intent, key, now_ns()) };
    // Whoever reads it at once must find it in the history.
    writes.lock().push(intent);
    let written = timeout(LIMIT, update(connection, key, value)).await;
    let ended = now_ns();
    let (record, good) = match written {
        Ok(Ok((version, timeline))) => {
            (Record { kind: Kind::Committed, version, timeline, ended, ..intent }, true)
        }
        // It waited for a lock for too long, say: nothing has changed.
        Ok(Err(error)) if is_refused(&error) => (Record { kind: Kind::Undone, ..intent }, true),
        _ => (Record { kind: Kind::Unknown, ..intent }, false),
    };
    writes.lock().push(record);
    good
}
