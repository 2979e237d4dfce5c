//! `perto-chat keys`: the API keys of companies. A key is shown once, when it is made; only its hash is kept.

use anyhow::{Context, bail};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::{Args, Subcommand};

use super::connect::Database;
use super::table;
use crate::service::keys::{KeyHash, generate};

/// See the command's help.
#[derive(Debug, Args)]
pub(crate) struct Keys {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a key for a company, and show it this once
    Create {
        /// The company's id
        #[arg(long)]
        company: i64,
        /// What it is for
        #[arg(long, default_value = "default")]
        name: String,
        #[command(flatten)]
        database: Database,
    },
    /// List the keys: never the keys themselves, which nobody has
    List {
        /// Of this company only
        #[arg(long)]
        company: Option<i64>,
        #[command(flatten)]
        database: Database,
    },
    /// Revoke a key: every instance refuses it within the bound
    Revoke {
        /// The key's number in the list
        id: i64,
        #[command(flatten)]
        database: Database,
    },
    /// Make a random key for `PERTO_ADMIN_KEY`, and show it
    Generate,
}

impl Keys {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self.what {
            What::Create { company, name, database } => create(&database, company, &name).await,
            What::List { company, database } => list(&database, company).await,
            What::Revoke { id, database } => revoke(&database, id).await,
            What::Generate => {
                super::say(&generate()?);
                Ok(())
            }
        }
    }
}

const TABLES: &str = "DATABASE_URL: the service's tables; run `perto-chat migrate`";

async fn create(database: &Database, company: i64, name: &str) -> anyhow::Result<()> {
    if !(1..=200).contains(&name.chars().count()) || name.contains(char::is_control) {
        bail!("--name: must have 1 to 200 characters, none of them control characters");
    }
    let key = generate()?;
    let mut connection = database.connect().await?;
    let sql = "insert into api_keys (company_id, name, hash) select id, $2, $3 from companies where id = $1 returning id";
    let query = sqlx::query_scalar::<_, i64>(sql).bind(company).bind(name);
    let id = query.bind(KeyHash::of(&key).bytes()).fetch_optional(&mut connection).await.context(TABLES)?;
    let id = id.with_context(|| format!("--company: there is no company {company}"))?;
    super::say_error(&format!("key {id} of company {company}; it can't be shown again:"));
    super::say(&key);
    Ok(())
}

async fn list(database: &Database, company: Option<i64>) -> anyhow::Result<()> {
    type Line = (i64, i64, String, DateTime<Utc>, Option<DateTime<Utc>>);
    let mut connection = database.connect().await?;
    let sql = "select id, company_id, name, created_at, revoked_at from api_keys \
               where $1::bigint is null or company_id = $1 order by id";
    let keys: Vec<Line> =
        sqlx::query_as(sql).bind(company).fetch_all(&mut connection).await.context(TABLES)?;
    let time = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    let line = |(id, company, name, created, revoked): Line| {
        vec![id.to_string(), company.to_string(), time(created), revoked.map_or_else(String::new, time), name]
    };
    let rows: Vec<Vec<String>> = keys.into_iter().map(line).collect();
    table(&["KEY", "COMPANY", "CREATED", "REVOKED", "NAME"], &rows).iter().for_each(|line| super::say(line));
    Ok(())
}

async fn revoke(database: &Database, id: i64) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    let sql = "update api_keys set revoked_at = coalesce(revoked_at, clock_timestamp()) where id = $1";
    let revoked = sqlx::query(sql).bind(id).execute(&mut connection).await.context(TABLES)?;
    if revoked.rows_affected() == 0 {
        bail!("there is no key {id}: see `perto-chat keys list`");
    }
    super::say(&format!("key {id} is revoked"));
    Ok(())
}
