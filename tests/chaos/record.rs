//! What a worker writes down of each read and write: records of one size, so that the file of a worker that was killed
//! is good up to its last whole record.
//!
//! Writes go to the file before they go to Postgres: who dies in between must not leave a value that nobody knows of.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

const BYTES: usize = 56;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A read that gave a value.
    Answer = 1,
    /// A read that gave an error.
    NoAnswer,
    /// A write that may be sent from now on.
    Intent,
    /// It was acknowledged.
    Committed,
    /// Its answer was lost.
    Unknown,
    /// It was rolled back, or failed before its commit was sent.
    Undone,
    /// A read that gave a value and had a token: `demanded` is the token's write.
    TokenAnswer,
    /// What a row was after a failover: a write of what it had been before, where something was lost.
    Rewound,
}

/// How an answer was flagged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Flag {
    Fresh = 0,
    Unverified,
    Stale,
}

/// One event. Times are of [`now_ns`], which all processes of a machine share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) flag: Flag,
    /// 0 is L1, 1 is L2, 2 is a load.
    pub(crate) tier: u8,
    pub(crate) key: u32,
    /// Counts up under the row's lock. 0 where it is not known.
    pub(crate) version: u64,
    /// Of no other write.
    pub(crate) value: u64,
    pub(crate) begun: u64,
    pub(crate) ended: u64,
    /// Of the server's history: promotions begin another.
    pub(crate) timeline: u32,
    /// What a read asked for: a poll of at most so many milliseconds ago, plus one. 0 where it asked for none. It may wait for that poll.
    pub(crate) within_ms: u32,
    /// The value that a read with a token demanded, or something newer.
    pub(crate) demanded: u64,
}

impl Record {
    /// A record to be filled in.
    pub(crate) const fn new(kind: Kind, key: u32, begun: u64) -> Self {
        let (version, value, ended, timeline, within_ms, demanded) = (0, 0, 0, 0, 0, 0);
        Self {
            kind,
            flag: Flag::Fresh,
            tier: 0,
            key,
            version,
            value,
            begun,
            ended,
            timeline,
            within_ms,
            demanded,
        }
    }

    fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[0] = self.kind as u8;
        bytes[1] = self.flag as u8;
        bytes[2] = self.tier;
        bytes[4..8].copy_from_slice(&self.key.to_le_bytes());
        for (at, number) in [self.version, self.value, self.begun, self.ended].into_iter().enumerate() {
            bytes[8 + 8 * at..16 + 8 * at].copy_from_slice(&number.to_le_bytes());
        }
        bytes[40..44].copy_from_slice(&self.timeline.to_le_bytes());
        bytes[44..48].copy_from_slice(&self.within_ms.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.demanded.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let kinds = [
            Kind::Answer,
            Kind::NoAnswer,
            Kind::Intent,
            Kind::Committed,
            Kind::Unknown,
            Kind::Undone,
            Kind::TokenAnswer,
            Kind::Rewound,
        ];
        let flags = [Flag::Fresh, Flag::Unverified, Flag::Stale];
        Some(Self {
            kind: kinds.into_iter().find(|kind| *kind as u8 == bytes[0])?,
            flag: flags.into_iter().find(|flag| *flag as u8 == bytes[1])?,
            tier: bytes[2],
            key: word(4)?,
            version: number(8)?,
            value: number(16)?,
            begun: number(24)?,
            ended: number(32)?,
            timeline: word(40)?,
            within_ms: word(44)?,
            demanded: number(48)?,
        })
    }
}

/// All whole records of a file.
pub(crate) fn read_file(path: &Path) -> io::Result<Vec<Record>> {
    let bytes = std::fs::read(path)?;
    Ok(bytes.chunks_exact(BYTES).map(|bytes| Record::from_bytes(bytes).expect("a record")).collect())
}

pub(crate) fn reads_file(folder: &Path, worker: u32, part: &str) -> PathBuf {
    folder.join(format!("reads-{worker}-{part}"))
}

pub(crate) fn writes_file(folder: &Path, worker: u32) -> PathBuf {
    folder.join(format!("writes-{worker}"))
}

/// The files of one worker.
pub(crate) struct Recorder {
    folder: PathBuf,
    worker: u32,
    reads: Mutex<BufWriter<File>>,
    writes: Mutex<File>,
}

impl Recorder {
    pub(crate) fn new(folder: &Path, worker: u32, part: &str) -> io::Result<Self> {
        Ok(Self {
            folder: folder.to_owned(),
            worker,
            reads: Mutex::new(BufWriter::with_capacity(
                1 << 16,
                File::create(reads_file(folder, worker, part))?,
            )),
            writes: Mutex::new(File::create(writes_file(folder, worker))?),
        })
    }

    pub(crate) fn read(&self, record: Record) {
        self.reads.lock().write_all(&record.to_bytes()).expect("the history of reads");
    }

    /// Handed to the kernel at once: it outlives this process.
    pub(crate) fn write(&self, record: Record) {
        self.writes.lock().write_all(&record.to_bytes()).expect("the history of writes");
    }

    pub(crate) fn flush(&self) {
        self.reads.lock().flush().expect("the history of reads");
    }

    /// Goes on in another file.
    pub(crate) fn cut(&self, part: &str) -> io::Result<()> {
        let next = File::create(reads_file(&self.folder, self.worker, part))?;
        let mut reads = self.reads.lock();
        reads.flush()?;
        *reads = BufWriter::with_capacity(1 << 16, next);
        Ok(())
    }
}

/// Nanoseconds on the clock that leases run on, finer than an instance reads it.
pub(crate) fn now_ns() -> u64 {
    #[cfg(target_os = "linux")]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(CLOCK);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
