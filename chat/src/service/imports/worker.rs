//! Takes imports, works through their chunks, and hands them on.
//!
//! Companies take turns: first those that have none running, then the one whose last turn is longest ago, however many imports
//! it has. Of a company, whoever waits longest comes first. After a while an import makes room for one that waits.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::chunks::{self, Claim};
use super::rows::{self, Batch, Shape};
use super::{Format, Imports, LEASE};

/// How often to look whether there is something to do. An upload to this instance is told of at once.
const LOOK: Duration = Duration::from_secs(1);
/// How long an import is worked on while others wait.
const TURN: Duration = Duration::from_secs(1);
/// An import that was taken so often without a chunk going through has failed.
const ATTEMPTS: i32 = 20;

/// How a turn ended.
enum Turn {
    /// All chunks are applied.
    Done,
    /// Others wait, or the instance ends.
    Over,
    /// It was cancelled, or another instance has it.
    Lost,
}

/// Works until the instance ends.
pub(super) async fn run(imports: Arc<Imports>) {
    while !imports.ending.is_cancelled() {
        match claim(&imports).await {
            Ok(Some(taken)) => take(&imports, taken).await,
            outcome => {
                if let Err(error) = outcome {
                    tracing::warn!(error = &error as &dyn std::error::Error, "can't look for imports");
                }
                tokio::select! {
                    () = imports.ending.cancelled() => {}
                    () = imports.queued.notified() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        }
    }
}

/// Which may be taken.
macro_rules! waiting {
    () => {
        "(i.state = 'queued' or i.state = 'running' and coalesce(i.leased_until <= clock_timestamp(), true))"
    };
}

/// An import that was taken.
#[derive(sqlx::FromRow)]
struct Taken {
    id: Uuid,
    company_id: i64,
    owner: Uuid,
    format: String,
    columns: Vec<String>,
    separator: String,
    region: String,
    attempts: i32,
}

async fn claim(imports: &Imports) -> Result<Option<Taken>, sqlx::Error> {
    let database = &imports.database;
    let query = database.write(concat!(
        "update imports set state = 'running', owner = gen_random_uuid(), instance = $1, attempts = attempts + 1, ",
        "leased_until = clock_timestamp() + make_interval(secs => $2), ",
        "started_at = coalesce(started_at, clock_timestamp()), claimed_at = clock_timestamp() ",
        "where id = (select i.id from imports i where i.state in ('uploading', 'queued', 'running') and ",
        waiting!(),
        " order by (select count(*) from imports o where o.company_id = i.company_id and o.state = 'running' ",
        "and o.leased_until > clock_timestamp()), (select max(o.claimed_at) from imports o ",
        "where o.company_id = i.company_id) nulls first, coalesce(i.worked_at, i.created_at) ",
        "limit 1 for update of i skip locked) ",
        "returning id, company_id, owner, format, columns, separator, region, attempts"
    ));
    Ok(database.fetch(query.bind(&imports.instance).bind(LEASE.as_secs_f64())).await?.pop())
}

/// One turn, and what is to be said of it.
async fn take(imports: &Arc<Imports>, taken: Taken) {
    let claim = Claim { import: taken.id, company: taken.company_id, owner: taken.owner };
    let shape = Shape {
        format: Format::named(&taken.format),
        columns: taken.columns,
        separator: taken.separator.bytes().next().unwrap_or(b','),
        region: taken.region,
    };
    let again = taken.attempts <= ATTEMPTS;
    let _running = Running::begin(imports);
    let turn = tokio::select! {
        turn = work(imports, claim, Arc::new(shape)), if again => turn,
        never = renew(imports, claim), if again => match never {},
        else => Err("instances ended while they worked on it".into()),
    };
    let told = match turn {
        Ok(Turn::Done) => finish(imports, claim).await,
        Ok(Turn::Over) => release(imports, claim).await,
        Ok(Turn::Lost) => Ok(()),
        Err(error) => {
            tracing::warn!(import = %claim.import, error = &*error, "a chunk of an import can't be written");
            put_off(imports, claim).await
        }
    };
    if let Err(error) = told {
        // Its lease ends, and somebody takes it again.
        tracing::warn!(import = %claim.import, error = &error as &dyn std::error::Error, "can't write how an import is");
    }
}

/// Counted until it is dropped.
struct Running<'a>(&'a Imports);

impl<'a> Running<'a> {
    fn begin(imports: &'a Imports) -> Self {
        imports.worked.running.fetch_add(1, Ordering::Relaxed);
        Self(imports)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.worked.running.fetch_sub(1, Ordering::Relaxed);
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Chunk after chunk. While one is being written, the next one is fetched and read.
async fn work(imports: &Imports, claim: Claim, shape: Arc<Shape>) -> Result<Turn, Failure> {
    let began = Instant::now();
    let mut ready = prepare(imports, claim.import, i32::MIN, &shape).await?;
    while let Some((seq, bytes, batch)) = ready {
        let (applied, next) = tokio::join!(
            chunks::apply(imports, claim, (seq, bytes), &batch),
            prepare(imports, claim.import, seq, &shape)
        );
        if !applied? {
            return Ok(Turn::Lost);
        }
        let over = imports.ending.is_cancelled() || began.elapsed() > TURN && others_wait(imports).await?;
        ready = next?;
        if over && ready.is_some() {
            return Ok(Turn::Over);
        }
    }
    Ok(Turn::Done)
}

async fn prepare(
    imports: &Imports,
    import: Uuid,
    behind: i32,
    shape: &Arc<Shape>,
) -> Result<Option<(i32, usize, Batch)>, Failure> {
    let Some(chunk) = chunks::next(&imports.database, import, behind).await? else { return Ok(None) };
    let (shape, seq, bytes) = (Arc::clone(shape), chunk.seq, chunk.data.len());
    // Off the threads that serve requests.
    let reading = imports.tasks.spawn_blocking(move || rows::batch(&shape, chunk.first_line, &chunk.data));
    Ok(Some((seq, bytes, reading.await?)))
}

async fn others_wait(imports: &Imports) -> Result<bool, sqlx::Error> {
    let wait = concat!(
        "select exists (select from imports i where i.state in ('uploading', 'queued', 'running') and ",
        waiting!(),
        ")"
    );
    let waiting = imports.database.fetch(imports.database.write::<(bool,)>(wait)).await?;
    Ok(waiting.first().is_some_and(|(waiting,)| *waiting))
}

/// Keeps the lease while a chunk takes long. The chunk's own transaction holds the row, and needs none of this.
async fn renew(imports: &Imports, claim: Claim) -> std::convert::Infallible {
    let mut often = tokio::time::interval(LEASE / 4);
    often.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    often.tick().await;
    loop {
        often.tick().await;
        let statement = imports.database.statement(
            "update imports set leased_until = clock_timestamp() + make_interval(secs => $3) where id = \
             (select id from imports where id = $1 and owner = $2 and state = 'running' for update skip locked)",
        )
        .bind(claim.import)
        .bind(claim.owner)
        .bind(LEASE.as_secs_f64());
        if let Err(error) = imports.database.run(statement).await {
            tracing::warn!(import = %claim.import, error = &error as &dyn std::error::Error, "can't renew the lease");
        }
    }
}

async fn finish(imports: &Imports, claim: Claim) -> Result<(), sqlx::Error> {
    let statement = imports.database.statement(
        "update imports set state = 'done', bytes_done = bytes, owner = null, instance = null, leased_until = null, \
         finished_at = clock_timestamp() where id = $1 and owner = $2 and state = 'running'",
    )
    .bind(claim.import)
    .bind(claim.owner);
    imports.database.run(statement).await?;
    tracing::info!(import = %claim.import, "an import is done");
    Ok(())
}

/// Leaves it to whoever comes next.
async fn release(imports: &Imports, claim: Claim) -> Result<(), sqlx::Error> {
    let statement = imports.database.statement(
        "update imports set owner = null, instance = null, leased_until = null, worked_at = clock_timestamp() \
         where id = $1 and owner = $2 and state = 'running'",
    )
    .bind(claim.import)
    .bind(claim.owner);
    imports.database.run(statement).await.map(drop)
}

/// Leaves it alone for a while, longer each time, and gives it up at last.
async fn put_off(imports: &Imports, claim: Claim) -> Result<(), sqlx::Error> {
    let statement = imports.database.statement(
        "update imports set owner = null, instance = null, worked_at = clock_timestamp(), \
         leased_until = clock_timestamp() + make_interval(secs => least(attempts, 15)), \
         state = case when attempts < $3 then 'running' else 'failed' end, \
         problem = case when attempts < $3 then null else 'the database does not take it; the log of the service says why' end, \
         finished_at = case when attempts < $3 then null else clock_timestamp() end \
         where id = $1 and owner = $2 and state = 'running'",
    )
    .bind(claim.import)
    .bind(claim.owner)
    .bind(ATTEMPTS);
    imports.database.run(statement).await.map(drop)
}
