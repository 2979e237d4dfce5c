//! What the doctor says of watched tables.

use perto::postgres::{self, Fault, FunctionChange, Watch, Watched};

use super::super::columns::shell;
use super::super::schema_option;
use super::declared::{self, Declared};
use super::postgres::reading;
use super::{Doctor, Finding, Findings, keys, limited, replication};

pub(super) async fn look(doctor: &Doctor, declared: Option<&[Declared]>) -> Vec<Finding> {
    let mut watched = None;
    let mut findings = limited("watched tables", async {
        let mut connection = reading(&doctor.database).await?;
        let all = watched.insert(postgres::watched(&mut connection, &doctor.schema).await?);
        let none = || {
            Finding::warn("watched tables", "none: no SQL write invalidates anything").mend(format!(
                "{} watch TABLE --cache NAME --key EXPR{}",
                doctor.program(),
                schema_option(&doctor.schema)
            ))
        };
        Ok(if all.is_empty() {
            vec![none()]
        } else {
            all.iter().flat_map(|watched| of_table(doctor, watched)).collect()
        })
    })
    .await;
    findings.extend(limited("record", writers(doctor)).await);
    if let Some(watched) = watched {
        findings.extend(limited("keys", keys::columns(doctor, &watched)).await);
        findings.extend(limited("functions", keys::orphans(doctor)).await);
        findings.extend(limited("service", declared::of_product(doctor, &watched)).await);
        if let Some(declared) = declared {
            findings.extend(limited("declared", declared::of_file(doctor, declared, &watched)).await);
        }
        findings.extend(limited("subscriptions", replication::subscriptions(doctor, &watched)).await);
        findings.extend(limited("sequences", replication::sequences(doctor, &watched)).await);
    }
    findings
}

/// Who may write what is watched can put SQL there that an admin is told to run above.
async fn writers(doctor: &Doctor) -> Findings {
    let mut connection = reading(&doctor.database).await?;
    let table = format!("{}.watched", doctor.schema);
    let writers: Vec<String> = sqlx::query_scalar(
        "select distinct case a.grantee when 0 then 'public' else a.grantee::regrole::text end \
         from pg_class c, aclexplode(c.relacl) a where c.oid = to_regclass($1) and a.grantee <> c.relowner \
         and a.privilege_type in ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE') order by 1",
    )
    .persistent(false)
    .bind(&table)
    .fetch_all(&mut connection)
    .await?;
    if writers.is_empty() {
        return Ok(vec![Finding::ok("record", format!("nobody but its owner may write {table}"))]);
    }
    let writers = writers.join(", ");
    let found = format!(
        "{table} may be written by {writers}: a key that is recorded there may be anybody's SQL. Read it before you run \
         what is said here"
    );
    let revoke = format!("revoke insert, update, delete, truncate on {table} from {writers};");
    Ok(vec![Finding::wrong("record", found).mend(revoke)])
}

/// The command that makes it right.
pub(super) fn command(doctor: &Doctor, watch: &Watch) -> String {
    let Watch { schema, table, cache, key, columns } = watch;
    let key = if key.is_empty() { "EXPR".to_owned() } else { shell(key) };
    let columns = match &columns[..] {
        [] => String::new(),
        columns => format!(" --columns {}", shell(&columns.join(","))),
    };
    format!(
        "{} watch {} --cache {} --key {key}{columns}{}",
        doctor.program(),
        shell(table),
        shell(cache),
        schema_option(schema)
    )
}

/// The command that takes the triggers away.
fn remove(doctor: &Doctor, watch: &Watch) -> String {
    let Watch { schema, table, cache, .. } = watch;
    let program = doctor.program();
    format!("{program} watch {} --cache {} --remove{}", shell(table), shell(cache), schema_option(schema))
}

fn of_table(doctor: &Doctor, watched: &Watched) -> Vec<Finding> {
    let watch = &watched.watch;
    let who = format!("{} (cache or topic {})", watch.table, watch.cache);
    let mend = command(doctor, watch);
    let mut findings = Vec::new();
    if !watched.recorded {
        let found = format!(
            "{who} was watched before there was a record of it: watch it again, to have it looked after"
        );
        findings.push(Finding::warn("watched tables", found).mend(&mend));
    }
    let triggers = triggers(&watched.faults);
    if !triggers.is_empty() {
        let found = format!("cache or topic {}: {}: writes are not seen", watch.cache, triggers.join("; "));
        findings.push(Finding::wrong("triggers", found).mend(&mend));
    }
    let uncovered: Vec<&str> = watched
        .faults
        .iter()
        .filter_map(|fault| match fault {
            Fault::Uncovered { table } => Some(table.as_str()),
            _ => None,
        })
        .collect();
    if !uncovered.is_empty() {
        let found = format!(
            "{} came after {who} was watched: writes that name it are not seen",
            uncovered.join(", ")
        );
        findings.push(Finding::wrong("partitions", found).mend(&mend));
    }
    for fault in &watched.faults {
        findings.extend(match fault {
            Fault::Gone => {
                let found = format!("{who} does not exist any more");
                Some(Finding::warn("watched tables", found).mend(remove(doctor, watch)))
            }
            Fault::Replaced { table } => {
                let found = format!("{table} is not the table that was watched for cache or topic {}: that one was dropped or renamed, and this one has no triggers", watch.cache);
                Some(Finding::wrong("watched tables", found).mend(&mend))
            }
            Fault::Key { table, error } => {
                let found = format!(
                    "the key of {table} for cache or topic {} can't be told any more ({error}): each write invalidates all its keys",
                    watch.cache
                );
                let mend = command(doctor, &Watch { key: String::new(), ..watch.clone() });
                Some(Finding::wrong("keys", found).mend(format!("{mend} --replace")))
            }
            Fault::Function { table, function, change } => Some(of_function(watch, table, function, *change, &mend)),
            _ => None,
        });
    }
    if findings.is_empty() {
        let more = match watched.tables.len() {
            0 | 1 => String::new(),
            2 => ", with a partition or inheriting table".to_owned(),
            n => format!(", with {} partitions or inheriting tables", n - 1),
        };
        let columns = match &watch.columns[..] {
            [] => String::new(),
            columns => format!(", where {} change", columns.join(", ")),
        };
        findings.push(Finding::ok("watched tables", format!("{who}, by {}{columns}{more}", watch.key)));
    }
    findings
}

/// What is wrong with triggers, a sentence for each table and kind.
fn triggers(faults: &[Fault]) -> Vec<String> {
    type Kind = fn(&Fault) -> Option<(&str, &str)>;
    let kinds: [(&str, Kind); 3] = [
        ("has no trigger for", |fault| match fault {
            Fault::Missing { table, event } => Some((table, event)),
            _ => None,
        }),
        ("has its trigger disabled for", |fault| match fault {
            Fault::Disabled { table, event } => Some((table, event)),
            _ => None,
        }),
        ("has a trigger that is not `enable always` for", |fault| match fault {
            Fault::NotAlways { table, event } => Some((table, event)),
            _ => None,
        }),
    ];
    let mut sentences = Vec::new();
    for (says, kind) in kinds {
        let found: Vec<(&str, &str)> = faults.iter().filter_map(kind).collect();
        for of_table in found.chunk_by(|a, b| a.0 == b.0) {
            let events: Vec<&str> = of_table.iter().map(|(_, event)| *event).collect();
            sentences.push(format!("{} {says} {}", of_table[0].0, events.join(", ")));
        }
    }
    sentences
}

fn of_function(watch: &Watch, table: &str, function: &str, change: FunctionChange, mend: &str) -> Finding {
    let (says, mend) = match change {
        FunctionChange::Body => (
            "is not the one that this Perto installs: what it writes to the log is not known",
            mend.to_owned(),
        ),
        FunctionChange::Session => (
            "is not `security definer` under its own settings any more: what it writes depends on who writes the table",
            mend.to_owned(),
        ),
        FunctionChange::Public => (
            "may be attached by anybody to a table of theirs, and then runs code as its owner",
            format!("revoke all on function {function} from public;"),
        ),
        FunctionChange::Owner => (
            "has an owner who may not write the log: every write to the table fails",
            format!("grant insert on {}.invalidation to OWNER; -- or, as who may: {mend}", watch.schema),
        ),
        _ => ("is not as it was installed", mend.to_owned()),
    };
    Finding::wrong("functions", format!("the trigger function of {table}, {function}, {says}")).mend(mend)
}
