//! Who changes what others use: one at a time, and nobody waits behind a lock that is waited for.
//!
//! A lock request that waits holds up all that come after it, readers included where the lock is a strong one. So each
//! attempt is short, and between two of them everybody else goes on.

use std::fmt;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, PgConnection};

use super::sql::refused;
use crate::error::LogError;

/// How long all attempts may take together.
const LIMIT: Duration = Duration::from_secs(10);
/// How long others may have to wait behind one attempt.
const ATTEMPT: &str = "100ms";
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(250);
/// How long one may wait for others who declare something in the same schema.
const TURN: &str = "60s";

/// Until the end of the transaction or savepoint only Postgres' own functions and operators are found by their bare names.
///
/// Whoever may create in a schema of the search path could else put some of the same names there, with types that fit
/// better, and have them run as whoever declares or looks.
pub(super) const PINNED_PATH: &str = "set local search_path = pg_catalog, pg_temp";

/// SQL that is run, or shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sql {
    /// One statement: a second one in it is refused. So for all that a key is part of.
    One(String),
    /// Any number of statements, all of them ours.
    Script(String),
}

impl Sql {
    async fn run(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        match self {
            Self::One(sql) => run_one(connection, sql).await,
            Self::Script(sql) => {
                sqlx::raw_sql(AssertSqlSafe(sql.as_str())).execute(connection).await.map(drop)
            }
        }
    }
}

impl fmt::Display for Sql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(sql) => writeln!(f, "{sql};"),
            Self::Script(sql) => writeln!(f, "{}", sql.trim_end()),
        }
    }
}

/// Runs one statement. Two are refused.
pub(super) async fn run_one(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(connection).await.map(drop)
}

/// Not the lock of those who begin an epoch or trim: they must not wait for a table that is locked.
///
/// A session remembers that it has found something or nothing in the catalogs, until it locks a table that it has not locked in this transaction:
/// this lock is none of a table. So it looks into one, and sees what others have made while it waited.
fn turn(schema: &str) -> String {
    format!(
        "select pg_advisory_xact_lock(hashtextextended('perto.{schema}.declare', 0)); select from pg_catalog.pg_class limit 0"
    )
}

/// From here to the end of the transaction nobody else declares anything in this schema.
pub(super) async fn declaring(connection: &mut PgConnection, schema: &str) -> Result<(), LogError> {
    let sql = format!("set local lock_timeout = '{TURN}'; {}", turn(schema));
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop).map_err(refused)
}

/// Runs all of it in the transaction, or none, for as long as it takes to get its locks. Between two attempts it holds none of
/// them.
pub(super) async fn run(connection: &mut PgConnection, plan: &[Sql]) -> Result<(), LogError> {
    if plan.is_empty() {
        return Ok(());
    }
    let began = Instant::now();
    loop {
        let error = match attempt(connection, plan).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if !wants_a_lock(&error) {
            return Err(refused(error));
        }
        if began.elapsed() >= LIMIT {
            return Err(LogError::Schema(format!(
                "others held what is to be changed for {LIMIT:?}: end their transactions (pg_stat_activity has them, \
                 oldest xact_start first) and try again"
            )));
        }
        let undo = "rollback to savepoint perto_attempt";
        sqlx::raw_sql(undo).execute(&mut *connection).await.map_err(refused)?;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn attempt(connection: &mut PgConnection, plan: &[Sql]) -> Result<(), sqlx::Error> {
    let begin = format!("savepoint perto_attempt; set local lock_timeout = '{ATTEMPT}'");
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *connection).await?;
    for sql in plan {
        sql.run(&mut *connection).await?;
    }
    sqlx::raw_sql("release savepoint perto_attempt").execute(connection).await.map(drop)
}

/// `lock_not_available`, and `deadlock_detected`: whoever else was in it goes on.
fn wants_a_lock(error: &sqlx::Error) -> bool {
    matches!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("55P03" | "40P01"))
}

/// The same for somebody to run by hand; `None` where there is nothing to do.
pub(super) fn script(schema: &str, plan: &[Sql]) -> Option<String> {
    let all: String = plan.iter().map(Sql::to_string).collect();
    let begin = format!("begin;\nset local lock_timeout = '{TURN}';\n{};", turn(schema));
    (!plan.is_empty()).then(|| format!("{begin}\nset local lock_timeout = '1s';\n{all}commit;\n"))
}
