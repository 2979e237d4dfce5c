//! Tiers of caches that somebody has put aside.

use perto::postgres;

use super::postgres::reading;
use super::{Doctor, Finding, Findings};

/// One finding for each switch that stands. It is as somebody wants it, and may have been forgotten.
pub(super) async fn look(doctor: &Doctor) -> Findings {
    let (schema, mut connection) = (&doctor.schema, reading(&doctor.database).await?);
    let switches = postgres::switches(&mut connection, schema).await?;
    let mut findings: Vec<Finding> = switches
        .iter()
        .map(|switch| {
            let of = switch
                .cache
                .as_deref()
                .map_or_else(|| "all caches".to_owned(), |cache| format!("cache {cache}"));
            let option = crate::schema_option(schema);
            let mend = switch.ended_by().replacen("perto", doctor.program(), 1);
            Finding::warn("switches", format!("of {of} {switch}")).mend(format!("{mend}{option}"))
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok("switches", "all tiers of all caches are on"));
    }
    Ok(findings)
}
