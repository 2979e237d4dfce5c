//! The fleet's rows in Postgres: each instance writes its own once a second, and reads the others' when it is asked.
//!
//! Over connections of the upkeep's own, so that it goes on when requests have taken all theirs. Each statement has its
//! transaction and its limit, and needs nothing of a connection but that: poolers may stand in between.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Row as _};
use uuid::Uuid;

use crate::service::database::Database;
use crate::service::imports::{self, UnderWay};

/// Of a connection, and of a transaction.
const LIMIT: Duration = Duration::from_secs(1);
/// Silent for longer, an instance counts as dead. Several heartbeats, and the limits of one.
pub(crate) const SILENT: Duration = Duration::from_secs(5);
/// Silent for longer, it is forgotten.
pub(crate) const FORGOTTEN: Duration = Duration::from_secs(60);
/// Most instances that are read.
const MOST: i64 = 1_000;

/// Tool results that one statement deletes.
pub(crate) const EXPIRED: usize = 400;
const _: () = assert!(EXPIRED <= perto::MAX_KEYS_PER_ROW);

/// The table of instances.
#[derive(Debug)]
pub(crate) struct Rows(Database);

/// What an instance writes.
#[derive(Debug)]
pub(crate) struct Beat<'a> {
    pub(crate) id: Uuid,
    pub(crate) name: &'a str,
    pub(crate) started_at: DateTime<Utc>,
    pub(crate) generation: i64,
    /// JSON.
    pub(crate) figures: String,
}

/// What it learns by that.
#[derive(Debug, FromRow)]
pub(crate) struct Heard {
    pub(crate) generation: i64,
    /// Others that are alive under the same name.
    pub(crate) namesakes: i64,
}

/// Another instance's row.
#[derive(Debug, FromRow)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) generation: i64,
    pub(crate) seen_at: DateTime<Utc>,
    pub(crate) silent: bool,
    pub(crate) figures: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("Postgres did not answer within {LIMIT:?}")]
    Late,
    #[error(transparent)]
    Failed(#[from] sqlx::Error),
}

impl Rows {
    pub(crate) const fn new(upkeep: Database) -> Self {
        Self(upkeep)
    }

    /// Writes this instance's row, takes away those of the dead, and hears which reset is the last. Of two at a time, the one
    /// that has heard of a reset stays.
    pub(crate) async fn beat(&self, beat: Beat<'_>) -> Result<Heard, Unanswered> {
        let sql = format!(
            "with beat as (
                 insert into instances (id, name, started_at, seen_at, generation, figures)
                 values ($1, $2, $3, now(), $4, $5::jsonb)
                 on conflict (id) do update
                 set seen_at = excluded.seen_at, generation = excluded.generation, figures = excluded.figures
                 where instances.generation <= excluded.generation
             ), swept as (
                 delete from instances where id in (
                     select id from instances where id <> $1 and seen_at < now() - interval '{} s'
                     for update skip locked)
             )
             select generation, (select count(*) from instances
                 where name = $2 and id <> $1 and seen_at > now() - interval '{} s') as namesakes
             from figures_reset",
            FORGOTTEN.as_secs(),
            SILENT.as_secs()
        );
        self.within(async |connection| {
            let query =
                sqlx::query_as(AssertSqlSafe(sql)).bind(beat.id).bind(beat.name).bind(beat.started_at);
            let query = query.bind(beat.generation).bind(beat.figures).persistent(self.0.prepared);
            query.fetch_one(connection).await
        })
        .await
    }

    /// The last reset, and the rows of all but one: in one statement, so that they are of one moment.
    pub(crate) async fn others(&self, than: Uuid) -> Result<(i64, Vec<Row>), Unanswered> {
        let sql = format!(
            "select r.generation as last, i.name, i.generation, i.seen_at,
                 i.seen_at < now() - interval '{} s' as silent, i.figures::text
             from figures_reset r
             left join instances i on i.id <> $1 and i.seen_at > now() - interval '{} s'
             order by i.name, i.started_at limit {MOST}",
            SILENT.as_secs(),
            FORGOTTEN.as_secs()
        );
        self.within(async |connection| {
            let query = sqlx::query(AssertSqlSafe(sql)).bind(than).persistent(self.0.prepared);
            let rows = query.fetch_all(connection).await?;
            let last = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get("last")?;
            let there = rows.iter().filter(|row| matches!(row.try_get("name"), Ok(Some::<&str>(_))));
            Ok((last, there.map(Row::from_row).collect::<Result<_, _>>()?))
        })
        .await
    }

    /// The imports that are under way, and those that have just ended.
    pub(crate) async fn imports(&self) -> Result<Vec<UnderWay>, Unanswered> {
        self.within(async |connection| imports::under_way(connection, self.0.prepared).await).await
    }

    /// Begins a generation that is later than any.
    pub(crate) async fn reset(&self, known: i64) -> Result<i64, Unanswered> {
        // A restored database may have forgotten resets that instances know of.
        let sql = "update figures_reset set generation = \
                   1 + greatest(generation, $1, (select max(generation) from instances)) returning generation";
        self.within(async |connection| {
            sqlx::query_scalar(sql).bind(known).persistent(self.0.prepared).fetch_one(connection).await
        })
        .await
    }

    /// Deletes tool results that expired a while ago, so many at a time that the log names each: returns how many.
    pub(crate) async fn expire(&self) -> Result<u64, Unanswered> {
        let sql = format!(
            "delete from tool_results where (chat_id, tool) in (
                 select chat_id, tool from tool_results where expires_at < now() - interval '1 h'
                 order by expires_at limit {EXPIRED} for update skip locked)"
        );
        self.within(async |connection| {
            let delete = sqlx::query(AssertSqlSafe(sql)).persistent(self.0.prepared);
            Ok(delete.execute(connection).await?.rows_affected())
        })
        .await
    }

    /// Takes an instance's row away.
    pub(crate) async fn leave(&self, id: Uuid) -> Result<(), Unanswered> {
        self.within(async |connection| {
            let delete = sqlx::query("delete from instances where id = $1").bind(id);
            delete.persistent(self.0.prepared).execute(connection).await.map(drop)
        })
        .await
    }

    /// Where the future is dropped, or is late, it may have happened all the same.
    async fn within<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Unanswered> {
        let acquired = tokio::time::timeout(LIMIT, self.0.pool.lend()).await;
        let mut connection = acquired.map_err(|_elapsed| Unanswered::Late)??;
        let working = async {
            let mut tx = self.0.begin(&mut connection).await?;
            let outcome = work(&mut tx).await?;
            tx.commit().await?;
            Ok::<_, sqlx::Error>(outcome)
        };
        match tokio::time::timeout(LIMIT, working).await {
            Ok(worked) => worked.inspect_err(|_| connection.doubt()).map_err(Unanswered::from),
            Err(_elapsed) => Err(Unanswered::Late),
        }
    }
}
