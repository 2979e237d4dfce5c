//! Settings that a role, a database or the server brings into each session, and policies that hide rows of the log.

use sqlx::{FromRow, PgConnection};

use super::postgres::reading;
use super::{Doctor, Finding, Findings, State};

/// What is wrong with a setting where its value is not as it should be.
type Judge = fn(&str) -> Option<(State, &'static str)>;

const SETTINGS: [(&str, Judge); 6] = [
    ("default_transaction_read_only", |value| {
        (value != "off")
            .then_some((State::Wrong, "every transaction may only read: no write, no trim and no new epoch"))
    }),
    ("default_transaction_isolation", |value| {
        let found = "transactions fail with 40001 where two of them meet, and a long one loads what is old: Perto needs no more \
            than read committed";
        (value != "read committed").then_some((State::Warn, found))
    }),
    ("session_replication_role", |value| {
        let found = "foreign keys and your own triggers don't fire, so what they would have written is missing; those of Perto \
            fire always";
        (value != "origin").then_some((State::Warn, found))
    }),
    ("row_security", |value| {
        (value != "on")
            .then_some((State::Warn, "reads of tables with policies fail, for all who don't own them"))
    }),
    ("statement_timeout", short),
    ("transaction_timeout", short),
];

/// In milliseconds: no poll takes a tenth of that.
const SHORTEST: u64 = 2_000;

fn short(value: &str) -> Option<(State, &'static str)> {
    let limit = value.parse().unwrap_or(0);
    let found = "a poll, a load or a trim that takes longer fails: Perto has limits of its own";
    (1..SHORTEST).contains(&limit).then_some((State::Warn, found))
}

#[derive(FromRow)]
struct Setting {
    name: String,
    /// What a session begins with, without a unit.
    value: String,
    /// The default, to go back to.
    default: String,
    /// Where it was set for this role or database, and the command that takes it back.
    place: Option<String>,
    reset: Option<String>,
}

pub(super) async fn look(doctor: &Doctor) -> Findings {
    let mut connection = reading(&doctor.database).await?;
    let names: Vec<&str> = SETTINGS.iter().map(|(name, _)| *name).collect();
    // Those that `reading` has set are still told as the session began.
    let settings: Vec<Setting> = sqlx::query_as(
        "select s.name, s.reset_val as value, s.boot_val as default, p.place, p.reset from pg_settings s left join lateral ( \
           select case when r.oid is null and d.oid is null then 'all roles' \
               when r.oid is null then format('database %I', datname) \
               when d.oid is null then format('role %I', rolname) \
               else format('role %I in database %I', rolname, datname) end as place, \
             case when r.oid is null and d.oid is null then format('alter role all reset %s;', s.name) \
               when r.oid is null then format('alter database %I reset %s;', datname, s.name) \
               when d.oid is null then format('alter role %I reset %s;', rolname, s.name) \
               else format('alter role %I in database %I reset %s;', rolname, datname, s.name) end as reset \
           from pg_db_role_setting g left join pg_roles r on r.oid = g.setrole left join pg_database d on d.oid = g.setdatabase \
           where (setrole = 0 or rolname = session_user) and (setdatabase = 0 or datname = current_database()) \
             and exists (select from unnest(setconfig) c where split_part(c, '=', 1) = s.name) \
           order by setrole = 0, setdatabase = 0 limit 1) p on true \
         where s.name = any($1)",
    )
    .persistent(false)
    .bind(names)
    .fetch_all(&mut connection)
    .await?;
    let mut findings = Vec::new();
    for setting in &settings {
        let Some((_, judge)) = SETTINGS.iter().find(|(name, _)| *name == setting.name) else { continue };
        if let Some((state, why)) = judge(&setting.value) {
            findings.push(setting.told(state, why, doctor.database.url()?));
        }
    }
    findings.extend(others(&mut connection).await?);
    findings.extend(policies(&mut connection, &doctor.schema).await?);
    if findings.is_empty() {
        findings
            .push(Finding::ok("settings", "none of this role, this database and the server is in the way"));
    }
    Ok(findings)
}

impl Setting {
    fn told(&self, state: State, why: &str, url: &str) -> Finding {
        let Self { name, value, default, place, reset } = self;
        let unit = if name.ends_with("_timeout") { " ms" } else { "" };
        let found = |place: &str| {
            Finding::new("settings", state, format!("{name} is {value}{unit}, by {place}: {why}"))
        };
        match (place, reset) {
            // It would be refused where it mends just that.
            (Some(place), Some(reset)) if name == "default_transaction_read_only" => {
                found(place).mend(format!("begin read write; {reset} commit;"))
            }
            (Some(place), Some(reset)) => found(place).mend(reset),
            _ if url.contains(name.as_str()) => {
                found("the URL").mend(format!("take options[{name}] out of DATABASE_URL"))
            }
            _ => found("the server")
                .mend(format!("alter system set {name} = '{default}';"))
                .mend("select pg_reload_conf();"),
        }
    }
}

/// Whoever else writes here.
async fn others(connection: &mut PgConnection) -> Findings {
    let rows: Vec<(String, String)> = sqlx::query_as(
        "select format('role %I', rolname), format('alter role %I%s reset session_replication_role;', rolname, \
             case when d.oid is null then '' else format(' in database %I', datname) end) \
         from pg_db_role_setting g join pg_roles r on r.oid = g.setrole left join pg_database d on d.oid = g.setdatabase \
         where rolname <> session_user and (setdatabase = 0 or datname = current_database()) \
           and exists (select from unnest(setconfig) c \
             where split_part(c, '=', 1) = 'session_replication_role' and split_part(c, '=', 2) <> 'origin') order by 1",
    )
    .persistent(false)
    .fetch_all(connection)
    .await?;
    let finding = |(role, mend): (String, String)| {
        let found = format!(
            "session_replication_role is not origin for {role}: of what it writes, foreign keys and your own triggers write \
             nothing; those of Perto fire always"
        );
        Finding::warn("settings", found).mend(mend)
    };
    Ok(rows.into_iter().map(finding).collect())
}

/// A poll that sees no rows finds nothing wrong.
async fn policies(connection: &mut PgConnection, schema: &str) -> Findings {
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', n.nspname, c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = $1 and c.relkind in ('r', 'p') and row_security_active(c.oid) order by 1",
    )
    .persistent(false)
    .bind(schema)
    .fetch_all(connection)
    .await?;
    let finding = |table: &String| {
        let found =
            format!("policies decide which rows of {table} this role sees: what is hidden is not evicted");
        Finding::wrong("settings", found).mend(format!("alter table {table} disable row level security;"))
    };
    Ok(tables.iter().map(finding).collect())
}
