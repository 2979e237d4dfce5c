//! Overviews: a company, and how much it has of what. By company, invalidated by what comes, goes or moves, and by no other
//! change of it.

use std::sync::Arc;

use axum::extract::State;
use perto::{Cache, CacheBuilder, Load, Loaded, StartError};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Service;
use super::answer::{Answer, ReadHeaders, Row, Served};
use super::caches::share_of;
use super::companies::{Companies, Tenant};
use super::contacts::OfCompany;
use super::database::Database;
use super::fair;
use super::problem::Problem;

pub(crate) const CACHE: &str = "overview";

pub(crate) type Overviews = Cache<i64, Row<Overview>>;

/// How much a company has.
#[derive(Debug, Serialize, Deserialize, FromRow, ToSchema)]
pub(crate) struct Overview {
    company: i64,
    /// The company's.
    name: String,
    users: i64,
    contacts: i64,
    chats: i64,
}

pub(super) fn cache(
    settings: CacheBuilder<i64, Row<Overview>>,
    database: Database,
    companies: Companies,
) -> Result<Overviews, StartError> {
    settings
        .tables(["users", "contacts", "chats"])
        .groups(|company, _| share_of(Some(*company)))
        .loader(move |load: Load<i64>| load_overviews(database.clone(), load, companies.clone()))
}

async fn load_overviews(
    database: Database,
    load: Load<i64>,
    companies: Companies,
) -> Result<Loaded<i64, Row<Overview>>, sqlx::Error> {
    let sql = "select c.id as company, c.name, \
                 (select count(*) from users where company_id = c.id) as users, \
                 (select count(*) from contacts where company_id = c.id) as contacts, \
                 (select count(*) from chats where company_id = c.id) as chats \
               from companies c where c.id = any($1)";
    let rows = database.read::<Overview>(sql).bind(load.keys).fetch(&database.pool).await?;
    // Of what is counted, the tables are watched for this cache. The name is another row's, which may also not be there yet.
    Ok(rows
        .by_key(|overview| (overview.company, Row::from(overview)))
        .depends_on(move |company, _| [companies.key(company)]))
}

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(read))
}

/// How many users, contacts and chats there are
#[utoipa::path(get, path = "/api/v1/companies/{company}/overview", tag = "companies", params(OfCompany, ReadHeaders),
    responses((status = 200, body = Overview)))]
async fn read(
    State(service): State<Arc<Service>>,
    Tenant { company, token, wanted, .. }: Tenant,
) -> Result<Answer, Problem> {
    let read = fair::read(&service.caches.overviews, &company.id, wanted.options()).await?;
    Ok(Answer::row(&Served::new(&service.caches.overviews, read, "company", |_| true)?.and(token), &wanted))
}
