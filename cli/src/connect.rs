//! Connections for commands: made at once, so that what is wrong is said at the start, with the setting's name.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use perto::{StartError, postgres};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

pub(crate) const LIMIT: Duration = Duration::from_secs(3);
/// Longest answer of Redis that is kept. `perto inspect` asks for whole values, which are smaller.
pub(crate) const MOST: usize = 64 << 20;

/// Where Postgres is.
#[derive(Debug, Clone, Args)]
pub struct Database {
    /// URL of Postgres, the primary
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,
}

impl Database {
    /// The URL.
    ///
    /// # Errors
    /// If there is none: which variable to set.
    pub fn url(&self) -> anyhow::Result<&str> {
        match self.database_url.as_deref() {
            Some(url) if !url.is_empty() => Ok(url),
            _ => bail!("DATABASE_URL is not set; like postgres://user@127.0.0.1:5432/database"),
        }
    }

    /// The options that the URL stands for.
    ///
    /// # Errors
    /// What is wrong with it. The URL is never quoted: it may hold a password.
    pub fn options(&self) -> anyhow::Result<PgConnectOptions> {
        postgres::options(self.url()?).map_err(|error| match error {
            StartError::Setting { problem, .. } => anyhow!("DATABASE_URL: {problem}"),
            error => anyhow::Error::new(error).context("DATABASE_URL"),
        })
    }

    /// Connects, within three seconds.
    ///
    /// # Errors
    /// What is wrong, with the name of the setting.
    pub async fn connect(&self) -> anyhow::Result<PgConnection> {
        self.connect_with(&self.options()?).await
    }

    async fn connect_with(&self, options: &PgConnectOptions) -> anyhow::Result<PgConnection> {
        match tokio::time::timeout(LIMIT, PgConnection::connect_with(options)).await {
            Ok(connected) => connected.map_err(|error| explain(error, options)),
            Err(_elapsed) => bail!("DATABASE_URL: {} did not answer within {LIMIT:?}", address(options)),
        }
    }

    /// Connects, and makes the database first where the server has none of that name. With the name of the one that was made.
    ///
    /// # Errors
    /// As [`Database::connect`].
    pub async fn connect_or_create(&self) -> anyhow::Result<(PgConnection, Option<String>)> {
        let options = self.options()?;
        let missing = match tokio::time::timeout(LIMIT, PgConnection::connect_with(&options)).await {
            Ok(Err(sqlx::Error::Database(error))) => error.code().as_deref() == Some("3D000"),
            _ => false,
        };
        let made = options.get_database().filter(|_| missing);
        if let Some(name) = made {
            let postgres = options.clone().database("postgres");
            let mut server = match tokio::time::timeout(LIMIT, PgConnection::connect_with(&postgres)).await {
                Ok(connected) => connected.map_err(|error| explain(error, &options))?,
                Err(_elapsed) => bail!("DATABASE_URL: {} did not answer within {LIMIT:?}", address(&options)),
            };
            let create = format!("create database \"{}\"", name.replace('"', "\"\""));
            sqlx::raw_sql(AssertSqlSafe(create))
                .execute(&mut server)
                .await
                .context("DATABASE_URL: create the database")?;
        }
        Ok((self.connect().await?, made.map(str::to_owned)))
    }

    pub(crate) async fn pool(&self, options: PgPoolOptions) -> anyhow::Result<PgPool> {
        self.pool_with(options, Some(&[])).await
    }

    /// A pool whose connections begin with these settings of the server; `None` behind a transaction pooler, which takes
    /// none.
    ///
    /// # Errors
    /// As [`Database::connect`]: one connection is made at once.
    pub async fn pool_with(
        &self,
        options: PgPoolOptions,
        settings: Option<&[(&str, &str)]>,
    ) -> anyhow::Result<PgPool> {
        let connecting = match settings {
            Some(settings) => self.options()?.options(settings.iter().copied()),
            None => self.options()?.extra_float_digits(None),
        };
        // One connection by hand first: a pool would try for its whole acquire timeout before it says what is wrong.
        drop(self.connect_with(&connecting).await?);
        Ok(options.connect_lazy_with(connecting))
    }
}

fn address(options: &PgConnectOptions) -> String {
    match options.get_host() {
        host if host.contains(':') => format!("[{host}]:{}", options.get_port()),
        host => format!("{host}:{}", options.get_port()),
    }
}

fn explain(error: sqlx::Error, options: &PgConnectOptions) -> anyhow::Error {
    let at = address(options);
    let code = error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
    match code.as_deref() {
        Some("28P01" | "28000") => {
            anyhow!("DATABASE_URL: {at} refuses user {:?} or its password", options.get_username())
        }
        Some("3D000") => {
            anyhow!("DATABASE_URL: {at} has no database {:?}", options.get_database().unwrap_or_default())
        }
        Some("53300") => anyhow!("DATABASE_URL: {at} has no connection left"),
        _ => anyhow::Error::new(error).context(format!("DATABASE_URL: {at} can't be reached")),
    }
}

/// Why Redis can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RedisTrouble {
    /// It will not get better by itself.
    #[error(transparent)]
    Setting(anyhow::Error),
    /// It is not there, or not now. A password that is refused may be rotated back, or set at the server.
    #[error(transparent)]
    Unreachable(anyhow::Error),
}

/// Checks that Redis answers, and says what is wrong where it doesn't.
///
/// # Errors
/// What is wrong, and whether it may get better by itself.
pub async fn check_redis(url: &str) -> Result<perto::redis::Connection, RedisTrouble> {
    let setting = |text: String| RedisTrouble::Setting(anyhow!(text));
    let address = perto::redis::address(url).map_err(|error| match error {
        StartError::Setting { problem, .. } => setting(format!("REDIS_URL is {problem}")),
        error => setting(format!("REDIS_URL: {error}")),
    })?;
    let at = address.place();
    let unreachable = |error: anyhow::Error| RedisTrouble::Unreachable(error);
    let silent = || unreachable(anyhow!("REDIS_URL: {at} did not answer within {LIMIT:?}"));
    let mut connection = match perto::redis::connect(&address, MOST, LIMIT).await {
        Ok(connection) => connection,
        Err(error) if error.kind() == redis::ErrorKind::InvalidClientConfig => {
            return Err(setting("REDIS_URL is not usable in this build".to_owned()));
        }
        Err(error) if error.kind() == redis::ErrorKind::AuthenticationFailed => {
            return Err(unreachable(anyhow!("REDIS_URL: {at} refuses the user or the password")));
        }
        Err(error) if error.is_timeout() => return Err(silent()),
        Err(error) => {
            return Err(unreachable(
                anyhow::Error::new(error).context(format!("REDIS_URL: {at} can't be reached")),
            ));
        }
    };
    match redis::cmd("PING").query_async::<String>(&mut *connection).await {
        Ok(_pong) => Ok(connection),
        Err(error) if error.code() == Some("NOAUTH") => {
            Err(unreachable(anyhow!("REDIS_URL: {at} wants a password")))
        }
        Err(error) if error.is_timeout() => Err(silent()),
        Err(error) => Err(unreachable(anyhow::Error::new(error).context(format!("REDIS_URL: {at} refuses")))),
    }
}

/// The same URL with another address: that of a proxy in front of the server.
pub(crate) fn with_address(url: &str, address: std::net::SocketAddr) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let user = authority.rfind('@').map_or("", |at| &authority[..=at]);
    Some(format!("{scheme}://{user}{address}{path}"))
}

/// The `host:port` of a URL, if it has one.
pub(crate) fn host_and_port(url: &str, default_port: u16) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
    let host = authority.rsplit('@').next().filter(|host| !host.is_empty())?;
    let port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Some(if port { host.to_owned() } else { format!("{host}:{default_port}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_takes_the_servers_place_and_nothing_else() {
        let proxy = ([127, 0, 0, 1], 9).into();
        for (url, server, proxied) in [
            ("redis://h", "h:6379", "redis://127.0.0.1:9"),
            ("redis://u:p@h:1/2", "h:1", "redis://u:p@127.0.0.1:9/2"),
            ("postgres://u:p%40@h/db?a=b", "h:6379", "postgres://u:p%40@127.0.0.1:9/db?a=b"),
        ] {
            assert_eq!(host_and_port(url, 6379).as_deref(), Some(server));
            assert_eq!(with_address(url, proxy).as_deref(), Some(proxied));
        }
    }
}
