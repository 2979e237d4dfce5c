//! `perto doctor`: looks at Postgres and Redis as they are configured, says what is wrong, and how to mend it.
//!
//! Reads only, but for a key of its own in Redis, which it removes. Each check has a limit in time and stands alone: one that
//! fails is one more finding.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde::Serialize;
use serde_json::json;

use super::Product;
use super::columns::{WIDTH, wrapped};
use super::connect::Database;

mod declared;
mod keys;
mod postgres;
mod redis;
mod replication;
mod settings;
mod switches;
mod tables;

/// Of one check, connecting included.
const LIMIT: Duration = Duration::from_secs(5);

/// See the command's help.
#[derive(Debug, Args)]
pub struct Doctor {
    /// The schema that holds the log
    #[arg(long, default_value = "perto")]
    schema: String,
    /// URL of a replica that loaders read, to look at too
    #[arg(long, value_name = "URL")]
    replica: Option<String>,
    /// What a program's caches and topics declare, to look whether it is watched: JSON, as `Perto::declared()` gives it
    #[arg(long, value_name = "FILE")]
    declared: Option<PathBuf>,
    /// The app whose keys and channel in Redis to try
    #[arg(long)]
    app: Option<String>,
    /// Tell of transactions that have been open for longer
    #[arg(long, default_value = "5m", value_parser = super::duration, value_name = "TIME")]
    long: Duration,
    /// For programs
    #[arg(long)]
    json: bool,
    /// URL of Redis or Valkey
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    redis_url: Option<String>,
    #[command(flatten)]
    database: Database,
    #[arg(skip)]
    product: Option<Product>,
}

/// How things are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    /// It works, and not as well as it could, or not for long.
    Warn,
    /// The promise doesn't hold, or something doesn't work.
    Wrong,
}

/// What a check has found.
#[derive(Debug, Clone, Serialize)]
struct Finding {
    check: &'static str,
    state: State,
    found: String,
    /// Commands or SQL, to be run as they are.
    mend: Vec<String>,
    /// It could not be looked at: Postgres refused for want of a right.
    #[serde(skip)]
    refused: bool,
}

impl Finding {
    fn new(check: &'static str, state: State, found: impl Into<String>) -> Self {
        Self { check, state, found: found.into(), mend: Vec::new(), refused: false }
    }

    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, State::Ok, found)
    }

    fn warn(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, State::Warn, found)
    }

    fn wrong(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, State::Wrong, found)
    }

    fn mend(mut self, how: impl Into<String>) -> Self {
        self.mend.push(how.into());
        self
    }
}

type Findings = anyhow::Result<Vec<Finding>>;

/// Runs a check. What keeps it from being made is a finding too.
async fn limited(check: &'static str, looking: impl Future<Output = Findings>) -> Vec<Finding> {
    match tokio::time::timeout(LIMIT, looking).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            let text = super::one_line(&error);
            let found = Finding::wrong(check, format!("can't be looked at: {text}"));
            vec![Finding { refused: is_for_want_of_a_right(&error), ..found }]
        }
        Err(_elapsed) => vec![Finding::wrong(check, format!("no answer within {LIMIT:?}"))],
    }
}

fn is_for_want_of_a_right(error: &anyhow::Error) -> bool {
    let of_log = error.downcast_ref::<perto::LogError>().and_then(|error| match error {
        perto::LogError::Refused(cause) => cause.downcast_ref::<sqlx::Error>(),
        _ => None,
    });
    let of_sql = of_log.or_else(|| error.downcast_ref()).and_then(sqlx::Error::as_database_error);
    // insufficient_privilege
    of_sql.and_then(sqlx::error::DatabaseError::code).as_deref() == Some("42501")
}

impl Doctor {
    pub(crate) async fn run(mut self, product: Option<Product>) -> anyhow::Result<()> {
        self.product = product;
        self.database.options()?;
        // Before it stands in any SQL.
        perto::postgres::log(self.database.url()?, &self.schema)?;
        let declared = self.declared.as_deref().map(declared::read).transpose()?;
        let mut findings = postgres::look(&self, declared.as_deref()).await;
        let redis_url = self.redis_url.as_deref().filter(|url| !url.is_empty());
        findings.extend(redis::look(redis_url, self.app()).await);
        let worst = findings.iter().map(|finding| finding.state).max().unwrap_or(State::Ok);
        if self.json {
            super::say(&json!({ "state": worst, "checks": findings }).to_string());
        } else {
            lines(&findings).iter().for_each(|line| super::say(line));
        }
        let wrong = findings.iter().filter(|finding| finding.state == State::Wrong).count();
        match wrong {
            0 => Ok(()),
            1 => bail!("doctor: one thing is wrong"),
            _ => bail!("doctor: {wrong} things are wrong"),
        }
    }
}

impl Doctor {
    /// Where nobody says which one, any app will do: who may use the keys of one may as a rule use those of all.
    fn app(&self) -> &str {
        self.app.as_deref().or_else(|| self.product.map(|product| product.app)).unwrap_or("doctor")
    }

    /// What the commands begin with that are printed.
    fn program(&self) -> &'static str {
        self.product.map_or("perto", |product| product.program)
    }
}

fn lines(findings: &[Finding]) -> Vec<String> {
    let indent = 7 + findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0) + 2;
    let mut lines = Vec::new();
    for Finding { check, state, found, mend, .. } in findings {
        let state = match state {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Wrong => "WRONG",
        };
        let mut text = wrapped(found, WIDTH - indent).into_iter();
        let first = text.next().unwrap_or_default();
        lines.push(format!("{state:<5}  {check:<width$}{first}", width = indent - 7));
        lines.extend(text.map(|more| format!("{:indent$}{more}", "")));
        // As they are: a command that is broken over lines can't be copied.
        lines.extend(mend.iter().map(|how| format!("{:indent$}mend: {how}", "")));
    }
    let of = |state: State| findings.iter().filter(|finding| finding.state == state).count();
    lines.push(format!("{} ok, {} to look at, {} wrong", of(State::Ok), of(State::Warn), of(State::Wrong)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_check_that_ends_with_an_error_or_not_at_all_is_a_finding() {
        let refused = limited("log", async { bail!("no right") }).await;
        assert_eq!(
            (refused[0].state, refused[0].found.as_str()),
            (State::Wrong, "can't be looked at: no right")
        );
        let silent = limited("log", std::future::pending()).await;
        assert_eq!((silent[0].state, silent[0].found.as_str()), (State::Wrong, "no answer within 5s"));
    }
}
