//! The routes of imports.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::status::{self, Import};
use super::{Format, Refusal, receive, rejected};
use crate::service::Service;
use crate::service::companies::Tenant;
use crate::service::contacts::OfCompany;
use crate::service::input::PathParams;
use crate::service::limits::Limit;
use crate::service::problem::{Kind, Problem};

pub(crate) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(read, cancel))
        .routes(routes!(read_rejected))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct ImportPath {
    #[param(minimum = 1)]
    #[expect(dead_code, reason = "`Tenant` reads it")]
    company: i64,
    id: Uuid,
}

fn no_import() -> Problem {
    Problem::not_found("there is no such import")
}

/// Imports contacts from a file, in the background
///
/// CSV has a header that names its columns: `phone`, and `name` and `email` if there are any; a comma, a semicolon or a
/// tab is between them. NDJSON has an object of the same on each line. A contact that exists gets the name and the e-mail address of the file; what a row leaves out or
/// empty stays as it is. Of several rows with one phone number the last one counts.
#[utoipa::path(post, path = "/api/v1/companies/{company}/contacts/imports", tag = "contacts",
    params(OfCompany),
    request_body(content((String = "text/csv"), (String = "application/x-ndjson"))),
    responses((status = 202, body = Import, headers(("location" = String, description = "Where its state is")))))]
async fn create(
    State(service): State<Arc<Service>>,
    Tenant { company, .. }: Tenant,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let format = format(&headers)?;
    let imports = &service.imports;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > imports.settings.max_bytes) {
        return Err(Refusal::TooLarge(imports.settings.max_bytes).into());
    }
    let id = receive::receive(imports, company.id, &company.region, format, body.into_data_stream()).await?;
    let import = status::find(&service.database, company.id, id).await?.ok_or_else(no_import)?;
    let location = format!("/api/v1/companies/{}/contacts/imports/{id}", company.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(import)).into_response())
}

/// The newest imports of a company
#[utoipa::path(get, path = "/api/v1/companies/{company}/contacts/imports", tag = "contacts",
    params(OfCompany), responses((status = 200, body = Vec<Import>)))]
async fn list(
    State(service): State<Arc<Service>>,
    Tenant { company, .. }: Tenant,
) -> Result<Json<Vec<Import>>, Problem> {
    Ok(Json(status::list(&service.database, company.id).await?))
}

/// How far an import is
#[utoipa::path(get, path = "/api/v1/companies/{company}/contacts/imports/{id}", tag = "contacts",
    params(ImportPath), responses((status = 200, body = Import)))]
async fn read(
    State(service): State<Arc<Service>>,
    Tenant { company, .. }: Tenant,
    PathParams(ImportPath { id, .. }): PathParams<ImportPath>,
) -> Result<Json<Import>, Problem> {
    status::find(&service.database, company.id, id).await?.map(Json).ok_or_else(no_import)
}

/// Stops an import; the rows that were applied stay
#[utoipa::path(delete, path = "/api/v1/companies/{company}/contacts/imports/{id}", tag = "contacts",
    params(ImportPath), responses((status = 200, body = Import)))]
async fn cancel(
    State(service): State<Arc<Service>>,
    Tenant { company, .. }: Tenant,
    PathParams(ImportPath { id, .. }): PathParams<ImportPath>,
) -> Result<Json<Import>, Problem> {
    let import = status::cancel(&service.database, company.id, id).await?.ok_or_else(no_import)?;
    service.imports.untidy.notify_one();
    Ok(Json(import))
}

/// The rows that an import rejected, with their lines and reasons, as a CSV file
///
/// The first million, if not set otherwise. A record is cut at 1 KiB; what a spreadsheet could take for a formula has an apostrophe before it.
#[utoipa::path(get, path = "/api/v1/companies/{company}/contacts/imports/{id}/rejected", tag = "contacts",
    params(ImportPath), responses((status = 200, body = String, content_type = "text/csv")))]
async fn read_rejected(
    State(service): State<Arc<Service>>,
    Tenant { company, .. }: Tenant,
    PathParams(ImportPath { id, .. }): PathParams<ImportPath>,
) -> Result<Response, Problem> {
    status::find(&service.database, company.id, id).await?.ok_or_else(no_import)?;
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"rejected-{id}.csv\"")),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((headers, Body::from_stream(rejected::file(service.database.clone(), id))).into_response())
}

/// What programs call a CSV file; on Windows also what Excel opens.
const CSV: [&str; 6] = [
    "text/csv",
    "application/csv",
    "text/x-csv",
    "text/comma-separated-values",
    "text/tab-separated-values",
    "application/vnd.ms-excel",
];
const NDJSON: [&str; 4] =
    ["application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"];

/// By the content type. Only UTF-8, and as it is.
fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    let unsupported = |field: &str, wrong: &str| Err(Problem::of(Kind::UnsupportedMediaType, field, wrong));
    let given = |name| headers.get(name).and_then(|given| given.to_str().ok()).unwrap_or_default();
    let coding = given(header::CONTENT_ENCODING);
    if !(coding.is_empty() || coding.eq_ignore_ascii_case("identity")) {
        return unsupported("content-encoding", "a file must come as it is");
    }
    let mut parts = given(header::CONTENT_TYPE).split(';').map(|part| part.trim().to_ascii_lowercase());
    let format = match parts.next().as_deref() {
        Some(given) if CSV.contains(&given) => Format::Csv,
        Some(given) if NDJSON.contains(&given) => Format::Ndjson,
        Some("multipart/form-data") => {
            return unsupported("content-type", "a form is not read: send the file itself, as text/csv");
        }
        _ => return unsupported("content-type", "must be text/csv or application/x-ndjson"),
    };
    let charset = parts.find_map(|part| Some(part.strip_prefix("charset=")?.trim_matches('"').to_owned()));
    match charset.as_deref() {
        None | Some("utf-8" | "utf8" | "us-ascii") => Ok(format),
        Some(_) => unsupported("content-type", "the charset must be utf-8: save the file as UTF-8"),
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let wrong = refusal.to_string();
        match refusal {
            Refusal::Database(error) => error.into(),
            Refusal::Header(wrong) => Self::invalid("header", &wrong),
            Refusal::TooMany(_) => Self::limit(Limit::Imports, wrong).retry_after(RETRY),
            Refusal::TooLarge(_) => Self::of(Kind::TooLarge, "body", &wrong),
            Refusal::Idle | Refusal::Slow => Self::of(Kind::RequestTimeout, "body", &wrong),
            Refusal::BrokenOff => Self::bad("body", &wrong),
            Refusal::Cancelled => Self::new(Kind::Conflict, wrong),
            Refusal::NoCompany => Self::not_found(wrong),
        }
    }
}

/// When it may be worth to try again.
const RETRY: Duration = Duration::from_secs(10);
