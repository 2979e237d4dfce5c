//! An upload, stored chunk by chunk as it comes.
//!
//! What is in memory at a time is one chunk and one piece of the body. Whoever stops in the middle, client or instance,
//! leaves an import that has failed, and no contact of it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::time::Instant;
use uuid::Uuid;

use super::chunks::{self, Chunk, Counts};
use super::header::{self, Header};
use super::records::{Found, Scanner};
use super::rows::{Reject, TOO_LONG};
use super::{Format, IDLE, Imports, Refusal, UPLOAD_LEASE};
use crate::service::database::Database;
use crate::service::fair;

/// A chunk is cut at the first record that ends behind so many bytes, or at so many records.
const CHUNK_BYTES: usize = 256 * 1024;
const CHUNK_RECORDS: usize = 5_000;

/// Longest time that a header may take to come, however it comes.
const HEADER: Duration = Duration::from_secs(10);
/// What must come of a body on average, in bytes a second, once it was waited for so long.
const MIN_RATE: u64 = 1024;
const SETTLED: Duration = Duration::from_mins(1);

const BROKEN_OFF: &str = "the upload broke off";

/// How many imports of a company are under way.
macro_rules! under_way {
    ($company:literal) => {
        concat!(
            "(select count(*) from imports where company_id = ",
            $company,
            " and state in ('uploading', 'queued', 'running'))"
        )
    };
}

/// Takes a file. The import is queued when all of it is stored.
///
/// Dropping the future fails the import.
pub(super) async fn receive<S, E>(
    imports: &Arc<Imports>,
    company: i64,
    region: &str,
    format: Format,
    body: S,
) -> Result<Uuid, Refusal>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    let mut body = Body::new(body, imports.settings.max_bytes);
    let mut cutter = Cutter::new(format);
    let opening = imports.opening(company)?;
    room(imports, company).await?;
    let (shape, mut rest) = match format {
        Format::Csv => tokio::time::timeout(HEADER, begin(&mut body, &mut cutter))
            .await
            .map_err(|_elapsed| Refusal::Slow)??,
        Format::Ndjson => (Header { columns: Vec::new(), separator: b',' }, Bytes::new()),
    };
    let upload = Upload::open(imports, company, region, format, &shape).await?;
    // From here on the database counts it.
    drop(opening);
    let taking = async {
        let mut renewed = Instant::now();
        loop {
            let mut bytes = &rest[..];
            while let Some(cut) = cutter.cut(&mut bytes) {
                upload.store(cut).await?;
                renewed = Instant::now();
            }
            // A slow client fills no chunk in time.
            if renewed.elapsed() > UPLOAD_LEASE / 4 {
                upload.store(Cut::default()).await?;
                renewed = Instant::now();
            }
            match body.next().await? {
                Some(piece) => rest = piece,
                None => break,
            }
        }
        upload.store(cutter.last()).await?;
        upload.complete(body.taken).await
    };
    let taken = taking.await;
    upload.end(taken).await
}

/// Whether another import may be under way, before anything of it is read. What opens the upload looks once more.
async fn room(imports: &Imports, company: i64) -> Result<(), Refusal> {
    let sql = concat!("select ", under_way!("$1"), " < $2");
    let most = imports.settings.per_company;
    let query = imports.database.write::<(bool,)>(sql).bind(company).bind(i64::from(most));
    let _turn = fair::turn().await;
    match imports.database.fetch(query).await?.first() {
        Some((true,)) => Ok(()),
        _ => Err(Refusal::TooMany(most)),
    }
}

/// The body, within its limits.
struct Body<S> {
    stream: S,
    taken: u64,
    most: u64,
    /// The client's own time, without what it takes to store what came.
    waited: Duration,
}

impl<S: Stream<Item = Result<Bytes, E>> + Unpin, E> Body<S> {
    const fn new(stream: S, most: u64) -> Self {
        Self { stream, taken: 0, most, waited: Duration::ZERO }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        let began = Instant::now();
        let next = tokio::time::timeout(IDLE, self.stream.next()).await;
        self.waited += began.elapsed();
        let piece = match next {
            Err(_elapsed) => return Err(Refusal::Idle),
            Ok(Some(Err(_gone))) => return Err(Refusal::BrokenOff),
            Ok(None) => return Ok(None),
            Ok(Some(Ok(piece))) => piece,
        };
        self.taken += piece.len() as u64;
        if self.taken > self.most {
            return Err(Refusal::TooLarge(self.most));
        }
        if self.waited > SETTLED && self.taken / MIN_RATE < self.waited.as_secs() {
            return Err(Refusal::Slow);
        }
        Ok(Some(piece))
    }
}

/// Reads the header, and returns with it what came behind it.
async fn begin<S, E>(body: &mut Body<S>, cutter: &mut Cutter) -> Result<(Header, Bytes), Refusal>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
{
    let (mut record, mut declared) = (Vec::new(), None);
    while let Some(mut piece) = body.next().await? {
        loop {
            match cutter.scanner.scan(&piece) {
                Found::Record(end) => {
                    record.extend_from_slice(&piece.split_to(end));
                    let separator = header::declared(&record).filter(|_| declared.is_none());
                    if separator.is_some() || record.trim_ascii().is_empty() {
                        declared = declared.or(separator);
                        record.clear();
                        continue;
                    }
                    let header = header::read(&record, declared).map_err(Refusal::Header)?;
                    cutter.separate_by(header.separator);
                    return Ok((header, piece));
                }
                Found::More => {
                    record.extend_from_slice(&piece);
                    break;
                }
                Found::TooLong(end) | Found::Skipped(end) => {
                    record.extend_from_slice(&piece[..end]);
                    let wrong = header::unreadable(&record);
                    return Err(Refusal::Header(wrong.unwrap_or_else(|| "is longer than any".to_owned())));
                }
            }
        }
    }
    if record.trim_ascii().is_empty() {
        return Err(Refusal::Header(
            "is missing: the first line must name the columns phone, name, email".to_owned(),
        ));
    }
    record.push(b'\n');
    *cutter = Cutter::new(Format::Csv);
    Ok((header::read(&record, declared).map_err(Refusal::Header)?, Bytes::new()))
}

/// What is to be stored at once.
#[derive(Debug, Default)]
struct Cut {
    chunk: Option<Chunk>,
    too_long: Option<Reject>,
}

/// Cuts a stream into chunks of whole records whose lines follow each other.
#[derive(Debug)]
struct Cutter {
    scanner: Scanner,
    chunk: Vec<u8>,
    /// How many bytes of the chunk are whole records, and how many records.
    whole: usize,
    records: usize,
    first_line: u64,
    seq: i32,
}

impl Cutter {
    fn new(format: Format) -> Self {
        Self { scanner: Scanner::new(format), chunk: Vec::new(), whole: 0, records: 0, first_line: 1, seq: 0 }
    }

    fn separate_by(&mut self, separator: u8) {
        let scanner = std::mem::replace(&mut self.scanner, Scanner::new(Format::Csv));
        self.scanner = scanner.separated_by(separator);
    }

    /// Takes from `bytes` until there is something to store, or nothing left.
    fn cut(&mut self, bytes: &mut &[u8]) -> Option<Cut> {
        while !bytes.is_empty() {
            if self.chunk.is_empty() {
                self.first_line = self.scanner.line();
            }
            let line = self.scanner.line();
            match self.scanner.scan(bytes) {
                Found::Record(end) => {
                    self.take(bytes, end);
                    self.whole = self.chunk.len();
                    self.records += 1;
                    if self.whole >= CHUNK_BYTES || self.records >= CHUNK_RECORDS {
                        return Some(Cut { chunk: self.chunk(), too_long: None });
                    }
                }
                Found::TooLong(end) => {
                    self.take(bytes, end);
                    let too_long = Reject::new(line, TOO_LONG, &self.chunk[self.whole..]);
                    self.chunk.truncate(self.whole);
                    return Some(Cut { chunk: self.chunk(), too_long: Some(too_long) });
                }
                Found::Skipped(end) => *bytes = &bytes[end..],
                Found::More => {
                    if self.scanner.is_inside() {
                        self.take(bytes, bytes.len());
                    }
                    return None;
                }
            }
        }
        None
    }

    /// What is left at the end of the file. A last record without its line end gets one.
    fn last(&mut self) -> Cut {
        if self.chunk.len() > self.whole {
            self.chunk.push(b'\n');
        }
        Cut { chunk: self.chunk(), too_long: None }
    }

    fn take(&mut self, bytes: &mut &[u8], end: usize) {
        self.chunk.extend_from_slice(&bytes[..end]);
        *bytes = &bytes[end..];
    }

    fn chunk(&mut self) -> Option<Chunk> {
        if self.chunk.is_empty() {
            return None;
        }
        let data = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK_BYTES + 4096));
        (self.whole, self.records) = (0, 0);
        self.seq += 1;
        Some(Chunk { seq: self.seq, first_line: self.first_line, data })
    }
}

/// An import that is being uploaded: it fails where it is dropped.
struct Upload {
    id: Uuid,
    imports: Arc<Imports>,
    done: bool,
}

impl Upload {
    async fn open(
        imports: &Arc<Imports>,
        company: i64,
        region: &str,
        format: Format,
        header: &Header,
    ) -> Result<Self, Refusal> {
        let _turn = fair::turn().await;
        let mut connection = imports.database.pool.lend().await?;
        let mut tx = imports.database.begin(&mut connection).await?;
        // One at a time of a company counts and adds; contacts may refer to it meanwhile.
        let lock = "select id from companies where id = $1 for no key update";
        let locked = imports.database.write::<(i64,)>(lock).bind(company).fetch_optional(&mut tx).await?;
        if locked.is_none() {
            return Err(Refusal::NoCompany);
        }
        let query = imports
            .database
            .write::<(Uuid,)>(concat!(
                "insert into imports (company_id, format, columns, separator, region, instance, leased_until) ",
                "select $1, $2, $3, $8, $4, $5, clock_timestamp() + make_interval(secs => $6) where ",
                under_way!("$1"),
                " < $7 returning id",
            ))
            .bind(company)
            .bind(format.name())
            .bind(&header.columns)
            .bind(region)
            .bind(&imports.instance)
            .bind(UPLOAD_LEASE.as_secs_f64())
            .bind(i64::from(imports.settings.per_company))
            .bind(char::from(header.separator).to_string());
        let id = query.fetch_optional(&mut tx).await?;
        tx.commit().await?;
        let (id,) = id.ok_or(Refusal::TooMany(imports.settings.per_company))?;
        Ok(Self { id, imports: Arc::clone(imports), done: false })
    }

    async fn store(&self, cut: Cut) -> Result<(), Refusal> {
        let rejects: Vec<Reject> = cut.too_long.into_iter().collect();
        let counts = Counts::of(&rejects, 0);
        let bytes = cut.chunk.as_ref().map_or(0, |chunk| chunk.data.len());
        let database = &self.imports.database;
        let _turn = fair::turn().await;
        let mut connection = database.pool.lend().await?;
        let mut tx = database.begin(&mut connection).await?;
        let query = database.write::<(i64,)>(concat!(
            "update imports set bytes = bytes + $2, leased_until = clock_timestamp() + make_interval(secs => $3), ",
            chunks::counted!("$4", "$5", "$6", "$7"),
            " where id = $1 and state = 'uploading' returning rejected"
        ))
        .bind(self.id)
        .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
        .bind(UPLOAD_LEASE.as_secs_f64())
        .bind(counts.accepted)
        .bind(counts.rejected)
        .bind(&counts.reasons)
        .bind(&counts.times);
        let (rejected,) = query.fetch_optional(&mut tx).await?.ok_or(Refusal::Cancelled)?;
        let kept = counts.kept(rejected, self.imports.settings.max_rejects).min(rejects.len());
        chunks::put_rejects(&self.imports, &mut tx, self.id, &rejects[..kept]).await?;
        if let Some(chunk) = cut.chunk {
            chunks::put(database, &mut tx, self.id, &chunk).await?;
        }
        Ok(tx.commit().await?)
    }

    async fn complete(&self, bytes: u64) -> Result<(), Refusal> {
        let statement = self
            .imports
            .database
            .statement(
                "update imports set state = 'queued', bytes = $2, instance = null, leased_until = null \
             where id = $1 and state = 'uploading'",
            )
            .bind(self.id)
            .bind(i64::try_from(bytes).unwrap_or(i64::MAX));
        let _turn = fair::turn().await;
        if self.imports.database.run(statement).await? == 0 {
            return Err(Refusal::Cancelled);
        }
        self.imports.queued.notify_one();
        Ok(())
    }

    async fn end(mut self, outcome: Result<(), Refusal>) -> Result<Uuid, Refusal> {
        self.done = true;
        if let Err(refusal) = outcome {
            let problem = match &refusal {
                Refusal::TooLarge(_) | Refusal::Idle | Refusal::Slow => format!("upload: {refusal}"),
                _ => BROKEN_OFF.to_owned(),
            };
            fail(&self.imports.database, self.id, &problem).await;
            self.imports.untidy.notify_one();
            return Err(refusal);
        }
        Ok(self.id)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.done {
            let (imports, id) = (Arc::clone(&self.imports), self.id);
            self.imports.tasks.spawn(async move {
                fail(&imports.database, id, BROKEN_OFF).await;
                imports.untidy.notify_one();
            });
        }
    }
}

/// Where this can't be written either, the sweep does it when the lease has ended.
async fn fail(database: &Database, id: Uuid, problem: &str) {
    let statement = database
        .statement(
            "update imports set state = 'failed', problem = $2, leased_until = null, instance = null, \
         finished_at = clock_timestamp() where id = $1 and state = 'uploading'",
        )
        .bind(id)
        .bind(problem);
    if let Err(error) = database.run(statement).await {
        tracing::warn!(import = %id, error = &error as &dyn std::error::Error, "an upload that broke off is left to the sweep");
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use proptest::prelude::*;

    use super::*;

    type Pieces = stream::Iter<std::vec::IntoIter<Result<Bytes, ()>>>;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stops_or_grows_too_large_is_refused() {
        let began = tokio::time::Instant::now();
        let mut silent = Body::new(stream::pending::<Result<Bytes, ()>>(), 10);
        assert!(matches!(silent.next().await, Err(Refusal::Idle)));
        assert_eq!(began.elapsed().as_secs(), IDLE.as_secs());
        let pieces: Vec<Result<Bytes, ()>> = vec![Ok(Bytes::from_static(b"12345")); 3];
        let mut large: Body<Pieces> = Body::new(stream::iter(pieces), 10);
        assert!(large.next().await.is_ok() && large.next().await.is_ok());
        assert!(matches!(large.next().await, Err(Refusal::TooLarge(10))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_refused_after_a_minute_and_one_that_comes_at_a_kib_a_second_is_not() {
        let every = |seconds, bytes| {
            Box::pin(stream::unfold((), move |()| async move {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                Some((Ok::<_, ()>(Bytes::from(vec![b' '; bytes])), ()))
            }))
        };
        let began = Instant::now();
        let mut trickle = Body::new(every(15, 1), 1 << 20);
        let refusal = loop {
            if let Err(refusal) = trickle.next().await {
                break refusal;
            }
        };
        assert!(matches!(refusal, Refusal::Slow), "{refusal:?}");
        assert_eq!(began.elapsed().as_secs(), 75);
        let mut steady = Body::new(every(10, 10_300), 1 << 20);
        for _ in 0..90 {
            assert!(steady.next().await.is_ok());
        }
        let (mut spaces, mut cutter) = (Body::new(every(3, 1), 1 << 20), Cutter::new(Format::Csv));
        let header = tokio::time::timeout(HEADER, begin(&mut spaces, &mut cutter));
        assert!(header.await.is_err(), "spaces are no header");
    }

    /// Number, first line and bytes of a chunk.
    type Stored = (i32, u64, Vec<u8>);

    /// What is stored of pieces: first line and bytes of each chunk, and the lines of records that are too long.
    fn stored(pieces: &[&[u8]]) -> (Vec<Stored>, Vec<u64>) {
        let (mut cutter, mut cuts) = (Cutter::new(Format::Csv), Vec::new());
        for mut piece in pieces.iter().copied() {
            while let Some(cut) = cutter.cut(&mut piece) {
                cuts.push(cut);
            }
        }
        cuts.push(cutter.last());
        let too_long = cuts.iter().filter_map(|cut| Some(cut.too_long.as_ref()?.line)).collect();
        let chunks = cuts.into_iter().filter_map(|cut| cut.chunk);
        (chunks.map(|chunk| (chunk.seq, chunk.first_line, chunk.data)).collect(), too_long)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn chunks_are_the_same_however_a_file_comes(
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..40),
            ended in any::<bool>(),
        ) {
            let long = "x".repeat(100_000);
            let rows: String = (0..12_000_usize).map(|row| format!("{row},\"a\nb\"\n")).collect();
            let mut file = format!("{rows}{long}\n{long}\nlast\n{}\n{long}", "y".repeat(60_000));
            if ended {
                file.push('\n');
            }
            let bytes = file.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let (chunks, too_long) = stored(&pieces);
            prop_assert_eq!((&chunks, &too_long), (&stored(&[bytes]).0, &vec![24_001, 24_002, 24_005]));
            let lines: Vec<u64> = chunks.iter().map(|(_, line, _)| *line).collect();
            prop_assert_eq!(lines, [1, 10_001, 20_001, 24_003]);
            prop_assert!(chunks.iter().all(|(_, _, data)| data.ends_with(b"\n")));
        }
    }
}
