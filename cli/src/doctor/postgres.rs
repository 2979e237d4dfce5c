//! What the doctor asks Postgres. Every check has a connection of its own: one that hangs takes none with it.

use std::time::Duration;

use anyhow::Context;
use perto::postgres::SCHEMA_VERSION;
use sqlx::{AssertSqlSafe, FromRow, PgConnection};

use super::super::columns::{bytes, time};
use super::super::connect::Database;
use super::super::{OF_THE_LOG, migrate};
use super::declared::{self, Declared};
use super::{Doctor, Finding, Findings, State, limited, replication, settings, switches, tables};

/// The oldest that has what the log needs.
const OLDEST: i32 = 130_000;
/// While an instance runs, ticks are a minute apart.
const TICK_OVERDUE: Duration = Duration::from_secs(5 * 60);
/// A replica that is further behind makes loads go to the primary.
const MAX_LAG: Duration = Duration::from_secs(1);

/// A connection that reads, and waits for nothing. Queries of the catalogue run once: to compile them takes seconds.
pub(super) async fn reading(database: &Database) -> anyhow::Result<PgConnection> {
    let mut connection = database.connect().await?;
    let settings = "set default_transaction_read_only = on; set statement_timeout = '4s'; set lock_timeout = '1s'; set jit = off";
    sqlx::raw_sql(settings).execute(&mut connection).await.context("DATABASE_URL")?;
    Ok(connection)
}

pub(super) async fn look(doctor: &Doctor, declared: Option<&[Declared]>) -> Vec<Finding> {
    let database = &doctor.database;
    let (mut findings, reached) = match tokio::time::timeout(super::LIMIT, server(database)).await {
        Ok(Ok(found)) => (found, true),
        Ok(Err(error)) => (vec![Finding::wrong("postgres", super::super::one_line(&error))], false),
        Err(_elapsed) => (
            vec![Finding::wrong("postgres", format!("DATABASE_URL: no answer within {:?}", super::LIMIT))],
            false,
        ),
    };
    if reached {
        findings.extend(limited("settings", settings::look(doctor)).await);
        findings.extend(of_log(doctor, declared).await);
        findings.extend(limited("transactions", transactions(doctor)).await);
        findings.extend(limited("connections", connections(doctor)).await);
    }
    if let Some(url) = &doctor.replica {
        findings.extend(limited("replica", replica(database, url)).await);
    }
    findings
}

/// What there is to say of the log. A right that is missing is told of once, and is no second fault of what it keeps from being
/// looked at.
async fn of_log(doctor: &Doctor, declared: Option<&[Declared]>) -> Vec<Finding> {
    let mut findings = limited("schema", schema(doctor)).await;
    let is_usable = findings.iter().all(|finding| finding.state == State::Ok);
    let is_there = is_usable || findings.iter().any(|finding| finding.refused);
    let rights = if is_there { limited("rights", rights(doctor)).await } else { Vec::new() };
    findings.extend(limited("publications", replication::publications(doctor, is_usable)).await);
    if is_usable {
        findings.extend(tables::look(doctor, declared).await);
        findings.extend(limited("log", log(doctor)).await);
        findings.extend(limited("switches", switches::look(doctor)).await);
    }
    if rights.iter().any(|finding| finding.state != State::Ok) {
        for finding in findings.iter_mut().filter(|finding| finding.refused) {
            finding.state = State::Warn;
            "not looked at: that takes the rights that are missing above".clone_into(&mut finding.found);
        }
    }
    [rights, findings].concat()
}

#[derive(FromRow)]
struct Server {
    version: String,
    number: i32,
    database: String,
    role: String,
    recovering: bool,
    behind: Option<f64>,
    follows: Option<String>,
}

async fn server(database: &Database) -> Findings {
    let mut connection = reading(database).await?;
    let sql = "select current_setting('server_version') as version, current_setting('server_version_num')::int as number, \
        current_database()::text as database, current_user::text as role, pg_is_in_recovery() as recovering, \
        case when pg_is_in_recovery() \
          then extract(epoch from now() - pg_last_xact_replay_timestamp())::float8 end as behind, \
        (select sender_host || ':' || sender_port from pg_stat_wal_receiver) as follows";
    let server: Server =
        sqlx::query_as(sql).persistent(false).fetch_one(&mut connection).await.context("DATABASE_URL")?;
    let options = database.options()?;
    let at = format!("{}:{}", options.get_host(), options.get_port());
    let mut findings = vec![
        Finding::ok("postgres", format!("{at}, database {}, as {}", server.database, server.role)),
        version(&server.version, server.number),
    ];
    findings.push(if server.recovering {
        let behind = seconds(server.behind).map_or("an unknown time".to_owned(), time);
        let primary = server.follows.unwrap_or_else(|| "HOST:PORT".to_owned());
        Finding::wrong(
            "primary",
            format!(
                "a standby, {behind} behind: polls and writes need the primary; a replica is for loaders only"
            ),
        )
        .mend(format!("point DATABASE_URL at the primary, {primary}"))
    } else {
        Finding::ok("primary", "not in recovery")
    });
    Ok(findings)
}

fn version(version: &str, number: i32) -> Finding {
    // "15.14 (Debian 15.14-0+deb12u1)" says it twice.
    let version = version.split(' ').next().unwrap_or(version);
    if number < OLDEST {
        let found = format!("{version} has no 64-bit transaction numbers, which the log needs: at least 13");
        return Finding::wrong("version", found).mend("upgrade Postgres to version 13 or later");
    }
    Finding::ok("version", version)
}

fn seconds(seconds: Option<f64>) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds?.max(0.0)).ok()
}

/// Whether the log is there, and of this version: else nothing else of it can be looked at.
async fn schema(doctor: &Doctor) -> Findings {
    let (schema, mut connection) = (&doctor.schema, reading(&doctor.database).await?);
    Ok(vec![match migrate::unusable(&mut connection, schema, doctor.product).await? {
        None => {
            let beside = migrate::beside(&mut connection, schema).await?;
            let beside = beside.map(|beside| format!(": {beside}")).unwrap_or_default();
            Finding::ok("schema", format!("{schema}, version {SCHEMA_VERSION}{beside}"))
        }
        Some(unusable) => {
            Finding::wrong("schema", format!("{}: no instance starts", unusable.found)).mend(unusable.mend())
        }
    }])
}

async fn rights(doctor: &Doctor) -> Findings {
    let mut connection = reading(&doctor.database).await?;
    let missing = perto::postgres::missing_rights(&mut connection, &doctor.schema).await?;
    let Some(first) = missing.first() else {
        return Ok(vec![Finding::ok("rights", "to read, write and trim the log")]);
    };
    let lacks: Vec<String> =
        missing.iter().map(|missing| format!("{} on {}", missing.rights, missing.on)).collect();
    let finding = Finding::wrong("rights", format!("{} lacks: {}", first.role, lacks.join("; ")));
    Ok(vec![missing.iter().fold(finding, |finding, missing| finding.mend(format!("{missing};")))])
}

async fn log(doctor: &Doctor) -> Findings {
    let (schema, mut connection) = (&doctor.schema, reading(&doctor.database).await?);
    let most = i64::try_from(perto::MAX_POLL_ROWS).unwrap_or(i64::MAX);
    let sql = format!(
        "select (select count(*) from (select from {schema}.invalidation limit {}) r), \
           pg_total_relation_size('{schema}.invalidation'::regclass), \
           extract(epoch from clock_timestamp() - max(at))::float8, \
           extract(epoch from clock_timestamp() - min(at))::float8 from {schema}.tick",
        most + 1
    );
    let (rows, size, newest, oldest): (i64, i64, Option<f64>, Option<f64>) =
        sqlx::query_as(AssertSqlSafe(sql)).persistent(false).fetch_one(&mut connection).await?;
    let (newest, oldest) = (seconds(newest), seconds(oldest));
    let many = rows > most;
    let size = bytes(u64::try_from(size).unwrap_or_default());
    let rows = match rows {
        _ if many => format!("more than {most} rows"),
        1 => "a row".to_owned(),
        _ => format!("{rows} rows"),
    };
    let mut found = format!("{rows}, {size}");
    match (newest, oldest) {
        (Some(newest), Some(oldest)) => {
            found += &format!(
                "; an instance looked after it {} ago; what is older than {} may be gone",
                time(newest),
                time(oldest)
            );
        }
        _ => found += "; no instance has run here yet",
    }
    let mut findings = Vec::new();
    if newest.is_some_and(|newest| newest > TICK_OVERDUE) {
        let found =
            format!("{found}: nobody trims it, so no instance runs, or each one fails to (see its events)");
        findings.push(Finding::warn("log", found).mend("start an instance of the program that uses it"));
    } else if many {
        findings.push(
            Finding::warn("log", format!("{found}: an instance that starts can't read that many, and begins with an empty cache"))
                .mend(format!("select cache, count(*) from {schema}.invalidation group by cache order by 2 desc; -- who writes that much")),
        );
    } else {
        findings.push(Finding::ok("log", found));
    }
    Ok(findings)
}

async fn transactions(doctor: &Doctor) -> Findings {
    let mut connection = reading(&doctor.database).await?;
    let open: Vec<(String, String, f64)> = sqlx::query_as(
        "select format('process %s of %s (%s, %s%s)', pid, usename, coalesce(nullif(application_name, ''), 'no name'), \
             state, case when backend_xid is null then '' else ', has written' end), \
           format('select pg_terminate_backend(%s);', pid), \
           extract(epoch from now() - xact_start)::float8 as age from pg_stat_activity \
         where backend_type = 'client backend' and pid <> pg_backend_pid() and datname = current_database() \
           and (backend_xid is not null or backend_xmin is not null) \
           and xact_start < now() - make_interval(secs => $1) \
         union all \
         select format('prepared transaction %s of %s', gid, owner), format('rollback prepared %L;', gid), \
           extract(epoch from now() - prepared)::float8 from pg_prepared_xacts \
         where database = current_database() and prepared < now() - make_interval(secs => $1) \
         order by age desc limit 10",
    )
    .persistent(false)
    .bind(doctor.long.as_secs_f64())
    .fetch_all(&mut connection)
    .await?;
    if open.is_empty() {
        let all: bool = sqlx::query_scalar("select pg_has_role('pg_read_all_stats', 'usage')")
            .persistent(false)
            .fetch_one(&mut connection)
            .await?;
        let unseen = if all { "" } else { "; those of other roles can't be seen without pg_read_all_stats" };
        return Ok(vec![Finding::ok("transactions", format!("none open for {}{unseen}", time(doctor.long)))]);
    }
    let finding = |(who, mend, age): &(String, String, f64)| {
        let age = seconds(Some(*age)).map_or_else(String::new, time);
        let found = format!(
            "{who} is open for {age}: the log keeps its dead rows, and keys that are written often stay uncached"
        );
        Finding::warn("transactions", found).mend(mend)
    };
    Ok(open.iter().map(finding).collect())
}

async fn connections(doctor: &Doctor) -> Findings {
    let mut connection = reading(&doctor.database).await?;
    // Minus those that are kept for superusers; and each limit with what counts against it.
    let (what, limit, used): (String, i64, i64) = sqlx::query_as(
        "with used as (select * from pg_stat_activity where backend_type = 'client backend'), limits(what, most, used) as ( \
           select 'the server', current_setting('max_connections')::bigint \
             - current_setting('superuser_reserved_connections')::bigint, (select count(*) from used) \
           union all select 'this database', datconnlimit, (select count(*) from used u where u.datid = d.oid) \
             from pg_database d where datname = current_database() and datconnlimit >= 0 \
           union all select 'this role', rolconnlimit, (select count(*) from used u where u.usesysid = r.oid) \
             from pg_roles r where rolname = current_user and rolconnlimit >= 0) \
         select what, most::bigint, used from limits order by most - used limit 1",
    )
    .persistent(false)
    .fetch_one(&mut connection)
    .await?;
    let (takes, wanted) = match declared::product(doctor, &mut connection).await? {
        Some(product) => ("an instance of the service takes up to", product.connections),
        None => ("besides its own pools, an instance takes for the log", OF_THE_LOG),
    };
    let found = format!("{used} of {limit} of {what} in use; {takes} {wanted}");
    Ok(vec![if limit - used < i64::from(wanted) {
        let mend = match what.as_str() {
            "this role" => "alter role ROLE connection limit N;",
            "this database" => "alter database NAME connection limit N;",
            _ => "alter system set max_connections = N; -- and a restart",
        };
        Finding::warn("connections", format!("{found}: one more would not get all it may want")).mend(mend)
    } else {
        Finding::ok("connections", found)
    }])
}

const POSITION: &str = "select (select system_identifier from pg_control_system()), pg_is_in_recovery(), \
    case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end::text";

async fn replica(database: &Database, url: &str) -> Findings {
    let other = Database { database_url: Some(url.to_owned()) };
    let named = |error: anyhow::Error| {
        anyhow::anyhow!(super::super::one_line(&error).replace("DATABASE_URL", "--replica"))
    };
    let mut replica = reading(&other).await.map_err(named)?;
    let (identity, recovering, _): (i64, bool, Option<String>) =
        sqlx::query_as(POSITION).persistent(false).fetch_one(&mut replica).await?;
    if !recovering {
        let found =
            "not in recovery: a primary, and what loaders read there is not what DATABASE_URL's log tells of";
        return Ok(vec![
            Finding::wrong("replica", found)
                .mend("point loaders at a standby of DATABASE_URL, or at DATABASE_URL"),
        ]);
    }
    let mut primary = reading(database).await?;
    let (same, _, position): (i64, bool, Option<String>) =
        sqlx::query_as(POSITION).persistent(false).fetch_one(&mut primary).await?;
    if identity != same {
        let found =
            format!("a standby of another cluster ({identity}, not {same}): its snapshots mean nothing here");
        return Ok(vec![Finding::wrong("replica", found).mend("point loaders at a standby of DATABASE_URL")]);
    }
    let (behind, paused, last): (Option<i64>, bool, Option<f64>) = sqlx::query_as(
        "select pg_wal_lsn_diff($1::pg_lsn, pg_last_wal_replay_lsn())::bigint, pg_is_wal_replay_paused(), \
           extract(epoch from now() - pg_last_xact_replay_timestamp())::float8",
    )
    .persistent(false)
    .bind(position)
    .fetch_one(&mut replica)
    .await?;
    let behind = u64::try_from(behind.unwrap_or_default()).unwrap_or_default();
    // One that has replayed no transaction since its start does not know.
    let lag = if behind == 0 { Some(Duration::ZERO) } else { seconds(last) };
    let mut found =
        format!("a standby of this cluster, {} behind", lag.map_or("an unknown time".to_owned(), time));
    if behind > 0 {
        found += &format!(" ({} to replay)", bytes(behind));
    }
    let loads = "what misses a known write is loaded again from the primary";
    Ok(vec![if paused {
        Finding::warn("replica", format!("{found}; its replay is paused: {loads}"))
            .mend("select pg_wal_replay_resume(); -- on the replica")
    } else if lag.is_none_or(|lag| lag > MAX_LAG) {
        Finding::warn("replica", format!("{found}: {loads}"))
            .mend("select * from pg_stat_replication; -- on the primary: where it waits")
    } else {
        Finding::ok("replica", found)
    }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_postgres_without_64_bit_transaction_numbers_is_too_old() {
        assert_eq!(version("12.20", 120_020).state, State::Wrong);
        assert_eq!(version("13.0", 130_000).state, State::Ok);
        assert_eq!(version("18.1 (Debian 18.1-1)", 180_001).found, "18.1");
    }
}
