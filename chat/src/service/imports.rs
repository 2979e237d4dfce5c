//! Imports of contacts: a file of any size, CSV or NDJSON, worked through in the background by any instance.
//!
//! An upload is cut into chunks at the ends of records, and each is stored as it comes. When all are there, an instance
//! takes the import for a while, by a lease, and turns one chunk after the other into contacts: what a chunk says, what
//! is counted of it and its removal are one transaction, and only of whoever has the lease. So every row is applied once,
//! whoever dies when, and another instance goes on where the last one stopped.
//!
//! A row without a name or an e-mail address leaves those of its contact as they are. Hints are not sent: every instance
//! sees the contacts within the bound, by the log.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::database::Database;
use super::limits::Limits;

mod chunks;
mod header;
mod http;
mod receive;
mod records;
mod rejected;
mod rows;
mod status;
mod sweep;
mod worker;

pub(super) use http::routes;
pub(super) use status::{UnderWay, under_way};

/// Longest time that a client may let pass without sending a byte of an upload.
const IDLE: Duration = Duration::from_secs(30);
/// How long an upload is left alone that nobody goes on with.
const UPLOAD_LEASE: Duration = Duration::from_secs(60);
/// How long a running import is left to its instance.
const LEASE: Duration = Duration::from_secs(10);

/// What an operator may set.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct ImportSettings {
    /// Largest file of an import in bytes
    #[arg(long = "import-max-bytes", env = "PERTO_IMPORT_MAX_BYTES", default_value_t = 10 << 30, value_name = "BYTES")]
    max_bytes: u64,
    /// Imports that a company may have under way
    #[arg(long = "imports-per-company", env = "PERTO_IMPORTS_PER_COMPANY", default_value_t = 2, value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(1..=100))]
    per_company: u32,
    /// Rejected rows of an import that are kept for its file; more are only counted
    #[arg(
        long = "import-max-rejects",
        env = "PERTO_IMPORT_MAX_REJECTS",
        default_value_t = 1_000_000,
        value_name = "NUMBER"
    )]
    max_rejects: u32,
    /// MiB that the rejected rows of an import may take; those of a company's imports together four times as much
    #[arg(long = "import-rejects-mib", env = "PERTO_IMPORT_REJECTS_MIB", default_value_t = 32, value_name = "MIB",
        value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    rejects_mib: u32,
    /// Imports that this instance works on at a time
    #[arg(long = "imports-at-once", env = "PERTO_IMPORTS_AT_ONCE", default_value_t = 2, value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(0..=16))]
    at_once: u32,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Format {
    Csv,
    Ndjson,
}

impl Format {
    const fn name(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Ndjson => "ndjson",
        }
    }

    fn named(name: &str) -> Self {
        if name == "ndjson" { Self::Ndjson } else { Self::Csv }
    }
}

/// Why an upload is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("header: {0}")]
    Header(String),
    #[error("{0} imports of this company are under way: one has to end first")]
    TooMany(u32),
    #[error("the file has more than {0} bytes")]
    TooLarge(u64),
    #[error("nothing came for {IDLE:?}")]
    Idle,
    #[error("came too slowly")]
    Slow,
    #[error("ended before it was complete")]
    BrokenOff,
    #[error("the import was cancelled")]
    Cancelled,
    #[error("there is no such company")]
    NoCompany,
    #[error("the database refused")]
    Database(#[from] sqlx::Error),
}

/// The imports of an instance: its share in the work, and what its routes need.
#[derive(Debug)]
pub(crate) struct Imports {
    database: Database,
    instance: String,
    settings: ImportSettings,
    limits: Arc<Limits>,
    /// There may be an import to take.
    queued: Notify,
    /// There may be chunks to throw away.
    untidy: Notify,
    /// Uploads of each company that are not in the database yet.
    opening: Mutex<HashMap<i64, u32>>,
    pub(super) worked: Worked,
    tasks: TaskTracker,
    ending: CancellationToken,
}

/// What this instance does and has done.
#[derive(Debug, Default)]
pub(super) struct Worked {
    pub(super) running: AtomicU64,
    pub(super) accepted: AtomicU64,
    pub(super) rejected: AtomicU64,
}

impl Imports {
    /// Begins to work on what is queued.
    pub(crate) fn start(
        database: Database,
        instance: String,
        settings: ImportSettings,
        limits: Arc<Limits>,
    ) -> Arc<Self> {
        let (tasks, ending) = (TaskTracker::new(), CancellationToken::new());
        let (queued, untidy) = (Notify::new(), Notify::new());
        let (opening, worked) = (Mutex::default(), Worked::default());
        let imports = Arc::new(Self {
            database,
            instance,
            settings,
            limits,
            queued,
            untidy,
            opening,
            worked,
            tasks,
            ending,
        });
        for _ in 0..settings.at_once {
            imports.tasks.spawn(worker::run(Arc::clone(&imports)));
        }
        imports.tasks.spawn(sweep::run(Arc::clone(&imports)));
        imports
    }

    /// Counts an upload until it is dropped, within the limit of those under way.
    fn opening(&self, company: i64) -> Result<Opening<'_>, Refusal> {
        let most = self.settings.per_company;
        let mut opening = self.opening.lock();
        let uploads = opening.entry(company).or_default();
        if *uploads >= most {
            return Err(Refusal::TooMany(most));
        }
        *uploads += 1;
        drop(opening);
        Ok(Opening { imports: self, company })
    }

    /// Asks for the end: what is being written is written, the rest is left to other instances at once.
    pub(crate) fn stop(&self) {
        self.ending.cancel();
    }

    /// Waits for the end of the work, and of what is to be written of uploads that broke off.
    pub(crate) async fn shutdown(&self) {
        self.stop();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// An upload whose header is still coming.
struct Opening<'a> {
    imports: &'a Imports,
    company: i64,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut opening = self.imports.opening.lock();
        if let Entry::Occupied(mut uploads) = opening.entry(self.company) {
            *uploads.get_mut() -= 1;
            if *uploads.get() == 0 {
                uploads.remove();
            }
        }
    }
}
