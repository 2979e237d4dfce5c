//! Companies: the tenants. By id, invalidated by any write to their row.

use std::sync::Arc;

use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::response::Response;
use perto::{Cache, CacheBuilder, Freshness, Load, Loaded, ReadOptions, StartError, Token};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Service;
use super::access::{Admin, Caller};
use super::answer::{Answer, Committed, Preconditions, Quality, ReadHeaders, Row, Served};
use super::caches::share_of;
use super::database::Database;
use super::fair;
use super::input::{Body, PathParams};
use super::problem::Problem;
use super::rules;

pub(crate) const CACHE: &str = "company";

pub(crate) type Companies = Cache<i64, Row<Company>>;

/// A company.
#[derive(Debug, Clone, Serialize, Deserialize, FromRow, ToSchema)]
pub(crate) struct Company {
    pub(crate) id: i64,
    name: String,
    /// ISO 3166-1 alpha-2: the region of phone numbers without a country code.
    pub(crate) region: String,
}

/// A new company.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewCompany {
    #[schema(min_length = 1, max_length = 200, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$", example = "Perto")]
    name: String,
    #[schema(pattern = "^[A-Z]{2}$", example = "PT")]
    region: String,
}

/// What to change of a company.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CompanyChange {
    #[schema(min_length = 1, max_length = 200, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$", nullable = true)]
    name: Option<String>,
    #[schema(pattern = "^[A-Z]{2}$", nullable = true)]
    region: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct CompanyPath {
    #[param(minimum = 1)]
    id: i64,
}

pub(super) fn cache(
    settings: CacheBuilder<i64, Row<Company>>,
    database: Database,
) -> Result<Companies, StartError> {
    settings
        .tables(["companies"])
        .groups(|id, row| share_of(row.map(|_| *id)))
        .loader(move |load: Load<i64>| load_companies(database.clone(), load))
}

async fn load_companies(
    database: Database,
    load: Load<i64>,
) -> Result<Loaded<i64, Row<Company>>, sqlx::Error> {
    let rows = database
        .read::<Company>("select id, name, region from companies where id = any($1)")
        .bind(load.keys)
        .fetch(&database.pool)
        .await?;
    Ok(rows.by_key(|company| (company.id, Row::from(company))))
}

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(create)).routes(routes!(read, change, delete))
}

/// The company of a path `/companies/{company}/…`, if it is there for the caller; as of the write that the request names.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) company: Company,
    /// Of what depends on it.
    pub(crate) freshness: Freshness,
    /// Of the company's row, which every answer rests on: see [`Served::and`].
    pub(crate) token: Option<Token>,
    pub(crate) wanted: Preconditions,
}

impl FromRequestParts<Arc<Service>> for Tenant {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service>) -> Result<Self, Problem> {
        #[derive(Deserialize)]
        struct CompanyParam {
            company: i64,
        }
        let caller = Caller::from_request_parts(parts, service).await?;
        let PathParams(CompanyParam { company }) = PathParams::from_request_parts(parts, service).await?;
        let wanted = Preconditions::from_request_parts(parts, service).await?;
        let found = find(service, caller, company, wanted.options()).await?;
        let Quality { freshness, token, .. } = found.quality;
        Ok(Self { company: found.value().row.clone(), freshness, token, wanted })
    }
}

async fn find(
    service: &Service,
    caller: Caller,
    id: i64,
    options: ReadOptions,
) -> Result<Served<Row<Company>>, Problem> {
    let read = fair::read(&service.caches.companies, &id, options).await?;
    Served::new(&service.caches.companies, read, "company", |company| caller.may(company.row.id))
}

/// A company by its id
#[utoipa::path(get, path = "/api/v1/companies/{id}", tag = "companies", params(CompanyPath, ReadHeaders),
    responses((status = 200, body = Company)))]
async fn read(
    State(service): State<Arc<Service>>,
    caller: Caller,
    PathParams(path): PathParams<CompanyPath>,
    wanted: Preconditions,
) -> Result<Answer, Problem> {
    let found = find(&service, caller, path.id, wanted.options()).await?;
    Ok(Answer::row(&found, &wanted))
}

/// Makes a company: for admins
#[utoipa::path(post, path = "/api/v1/companies", tag = "companies", request_body = NewCompany,
    responses((status = 201, body = Company)))]
async fn create(
    State(service): State<Arc<Service>>,
    _: Admin,
    Body(new): Body<NewCompany>,
) -> Result<Response, Problem> {
    let (name, region) = (rules::name(&new.name)?, region(&new.region)?);
    let sql = "insert into companies (name, region) values ($1, $2) returning id, name, region";
    let written = service
        .write(async |tx| service.database.write::<Company>(sql).bind(name).bind(region).fetch_one(tx).await)
        .await?;
    let location = format!("/api/v1/companies/{}", written.value.id);
    Ok(Committed(written).created(&location))
}

/// Changes a company
#[utoipa::path(patch, path = "/api/v1/companies/{id}", tag = "companies", params(CompanyPath), request_body = CompanyChange,
    responses((status = 200, body = Company)))]
async fn change(
    State(service): State<Arc<Service>>,
    caller: Caller,
    PathParams(path): PathParams<CompanyPath>,
    Body(change): Body<CompanyChange>,
) -> Result<Committed<Company>, Problem> {
    let name = change.name.as_deref().map(rules::name).transpose()?;
    let region = change.region.as_deref().map(region).transpose()?;
    let sql = "update companies set name = coalesce($3, name), region = coalesce($4, region) \
               where id = $1 and ($2::bigint is null or id = $2) returning id, name, region";
    let written = service
        .write(async |tx| {
            let query = service.database.write::<Company>(sql).bind(path.id).bind(caller.company());
            query.bind(name).bind(region).fetch_optional(tx).await
        })
        .await?;
    Committed::some(written).ok_or_else(|| Problem::not_found("there is no such company"))
}

/// Deletes a company and all that it has: for admins
#[utoipa::path(delete, path = "/api/v1/companies/{id}", tag = "companies", params(CompanyPath),
    responses((status = 200, body = Company)))]
async fn delete(
    State(service): State<Arc<Service>>,
    _: Admin,
    caller: Caller,
    PathParams(path): PathParams<CompanyPath>,
) -> Result<Committed<Company>, Problem> {
    let sql =
        "delete from companies where id = $1 and ($2::bigint is null or id = $2) returning id, name, region";
    let written = service
        .write(async |tx| {
            let query = service.database.write::<Company>(sql).bind(path.id).bind(caller.company());
            query.fetch_optional(tx).await
        })
        .await?;
    Committed::some(written).ok_or_else(|| Problem::not_found("there is no such company"))
}

fn region(text: &str) -> Result<&str, Problem> {
    match text.len() == 2 && text.bytes().all(|b| b.is_ascii_uppercase()) {
        true => Ok(text),
        false => Err(Problem::invalid("region", "must be two capital letters, like PT")),
    }
}
