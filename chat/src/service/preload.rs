//! Contacts brought into the caches before they are asked for, in batches of one look-up and one load each.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Service;
use super::access::Caller;
use super::companies::Tenant;
use super::contacts::{ByPhone, OfCompany};
use super::fair;
use super::input::Body;
use super::problem::Problem;

/// What one look-up takes in one round trip.
const BATCH: usize = 1_000;
const MOST: i64 = 100_000;
/// Contacts that count as one request.
const CONTACTS: usize = 10;

/// How much to preload.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Preload {
    /// How many contacts, the newest first.
    #[serde(default = "usual")]
    #[schema(minimum = 1, maximum = 100_000, default = 1_000)]
    limit: i64,
}

const fn usual() -> i64 {
    1_000
}

/// What was preloaded.
#[derive(Debug, Serialize, ToSchema)]
struct Preloaded {
    /// Contacts that are now cached by id and by phone.
    preloaded: usize,
    /// How many of them were cached by id already, in either tier.
    already: usize,
}

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(preload))
}

/// Brings a company's contacts into the caches
#[utoipa::path(post, path = "/api/v1/companies/{company}/contacts/preload", tag = "contacts", params(OfCompany),
    request_body = Preload, responses((status = 200, body = Preloaded)))]
async fn preload(
    State(service): State<Arc<Service>>,
    Tenant { company, .. }: Tenant,
    caller: Caller,
    Body(wanted): Body<Preload>,
) -> Result<Json<Preloaded>, Problem> {
    if !(1..=MOST).contains(&wanted.limit) {
        return Err(Problem::invalid("limit", &format!("must be 1 to {MOST}")));
    }
    let sql = "select id, phone from contacts where company_id = $1 order by id desc limit $2";
    let query = service.database.read::<(i64, String)>(sql).bind(company.id).bind(wanted.limit);
    let turn = fair::turn().await;
    let contacts = query.fetch(&service.database.pool).await?.rows;
    drop(turn);
    let mut done = Preloaded { preloaded: 0, already: 0 };
    for batch in contacts.chunks(BATCH) {
        let ids: Vec<i64> = batch.iter().map(|(id, _)| *id).collect();
        let phones: Vec<ByPhone> =
            batch.iter().map(|(_, phone)| ByPhone { company: company.id, phone: phone.clone() }).collect();
        service.access.wait_for_work(caller.charged(), ids.len() / CONTACTS).await;
        let turn = fair::turn().await;
        let by_id = service.caches.contacts.get_many(&ids).await?;
        service.caches.contacts_by_phone.get_many(&phones).await?;
        drop(turn);
        done.preloaded += by_id.iter().filter(|read| read.value().is_some()).count();
        done.already +=
            by_id.iter().filter(|read| read.value().is_some() && read.tier != perto::Tier::Load).count();
    }
    Ok(Json(done))
}
