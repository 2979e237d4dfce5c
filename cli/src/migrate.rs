//! `perto migrate`: the tables of the invalidation log, made or upgraded.

use clap::Args;
use perto::postgres::{self, SCHEMA_VERSION, SchemaVersions};
use sqlx::PgConnection;

use super::connect::Database;
use crate::Product;

/// See the command's help.
#[derive(Debug, Args)]
pub struct Migrate {
    /// The schema that holds the log
    #[arg(long, default_value = "perto")]
    pub schema: String,
    /// Print the SQL that would be run for the log, and run nothing
    #[arg(long)]
    pub sql: bool,
    /// End an upgrade: instances of the version before can't read the log any more. Refused while one is connected
    #[arg(long, conflicts_with = "sql")]
    pub finish: bool,
    /// Where it is to be made.
    #[command(flatten)]
    pub database: Database,
}

impl Migrate {
    /// # Errors
    /// What went wrong, for a person.
    pub async fn run(self) -> anyhow::Result<()> {
        if self.sql {
            let mut connection = self.database.connect().await?;
            let sql = postgres::migrate_sql(&mut connection, &self.schema).await?;
            sql.as_deref().unwrap_or("-- nothing to do").lines().for_each(super::say);
            return Ok(());
        }
        let schema = &self.schema;
        if self.finish {
            let mut connection = self.database.connect().await?;
            super::say(&finish(&mut connection, schema).await?);
            return Ok(());
        }
        let mut connection = self.connect().await?;
        let done = log(&mut connection, schema).await?;
        super::say(&done.unwrap_or_else(|| {
            format!("Perto's tables are there already, in the schema {schema}, version {SCHEMA_VERSION}: nothing to do")
        }));
        if let Some(beside) = beside(&mut connection, schema).await? {
            super::say(&beside);
        }
        Ok(())
    }

    /// Connects. A database that is not there is made, and told of.
    ///
    /// # Errors
    /// As [`Database::connect`].
    pub async fn connect(&self) -> anyhow::Result<PgConnection> {
        let (connection, made) = self.database.connect_or_create().await?;
        if let Some(name) = made {
            super::say(&format!("made the database {name}"));
        }
        Ok(connection)
    }
}

/// Makes or upgrades the log's tables. What was done, for a person; `None` where there was nothing to do.
///
/// # Errors
/// Those of [`postgres::migrate`].
pub async fn log(connection: &mut PgConnection, schema: &str) -> anyhow::Result<Option<String>> {
    let before = postgres::schema_version(connection, schema).await?;
    let is_done = postgres::migrate_sql(connection, schema).await?.is_none();
    postgres::migrate(connection, schema).await?;
    Ok(match before {
        _ if is_done => None,
        None => Some(format!("made Perto's tables in the schema {schema}, version {SCHEMA_VERSION}")),
        Some(SchemaVersions { newest, .. }) if newest >= SCHEMA_VERSION => {
            Some(format!("made Perto's tables in the schema {schema} unlogged again"))
        }
        Some(SchemaVersions { newest, .. }) => Some(format!(
            "upgraded Perto's tables in the schema {schema} from version {newest} to {SCHEMA_VERSION}"
        )),
    })
}

/// Whom an unfinished upgrade leaves room for, for a person; `None` where it is finished.
///
/// # Errors
/// Those of [`postgres::unfinished`].
pub async fn beside(connection: &mut PgConnection, schema: &str) -> anyhow::Result<Option<String>> {
    let Some(unfinished) = postgres::unfinished(connection, schema).await? else { return Ok(None) };
    let running = match &unfinished.running[..] {
        [] => "none is connected".to_owned(),
        running => format!("connected are: {}", running.join(", ")),
    };
    Ok(Some(format!(
        "instances of version {} may go on beside those of {}; {running}. Once they are gone for good: migrate --finish",
        unfinished.oldest, unfinished.newest
    )))
}

/// Ends an upgrade. What was done, for a person.
///
/// # Errors
/// Those of [`postgres::finish`].
pub async fn finish(connection: &mut PgConnection, schema: &str) -> anyhow::Result<String> {
    Ok(match postgres::finish(connection, schema).await? {
        true => {
            format!("finished: Perto's tables in the schema {schema} are for version {SCHEMA_VERSION} alone")
        }
        false => {
            format!(
                "nothing to finish: Perto's tables in the schema {schema} are for version {SCHEMA_VERSION} alone"
            )
        }
    })
}

/// Why a command can do nothing with the log.
pub(crate) struct Unusable {
    pub(crate) found: String,
    /// The command that mends it. None: only a newer Perto does.
    command: Option<String>,
}

impl Unusable {
    /// The command alone, or what to do.
    pub(crate) fn mend(&self) -> &str {
        self.command.as_deref().unwrap_or("use a newer Perto")
    }
}

/// Whether the log can't be used: nobody has made it in this database, or it is another version's.
pub(crate) async fn unusable(
    connection: &mut PgConnection,
    schema: &str,
    product: Option<Product>,
) -> anyhow::Result<Option<Unusable>> {
    let command = Some(command(schema, product));
    Ok(match postgres::schema_version(connection, schema).await? {
        Some(found) if found.fits() => None,
        None => {
            let found = format!("Perto's tables are not in this database, in the schema {schema}");
            Some(Unusable { found, command })
        }
        Some(SchemaVersions { oldest, newest, .. }) => {
            let version = if oldest > SCHEMA_VERSION { oldest } else { newest };
            let found = format!(
                "Perto's tables in the schema {schema} are of version {version}, and this Perto needs {SCHEMA_VERSION}"
            );
            Some(Unusable { found, command: command.filter(|_| version < SCHEMA_VERSION) })
        }
    })
}

/// For commands that need the log.
pub(crate) async fn needs_log(
    connection: &mut PgConnection,
    schema: &str,
    product: Option<Product>,
) -> anyhow::Result<()> {
    match unusable(connection, schema, product).await? {
        None => Ok(()),
        Some(Unusable { found, command: Some(command) }) => anyhow::bail!("{found}: run `{command}`"),
        Some(unusable) => anyhow::bail!("{}: {}", unusable.found, unusable.mend()),
    }
}

/// The command that makes the log, by the program that this is.
pub(crate) fn command(schema: &str, product: Option<Product>) -> String {
    match product {
        Some(product) if product.schema == schema => product.migrate.to_owned(),
        Some(product) => format!("{}{}", product.migrate_log, super::schema_option(schema)),
        None => format!("perto migrate{}", super::schema_option(schema)),
    }
}
