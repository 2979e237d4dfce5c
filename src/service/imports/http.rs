//! The routes of imports.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::status::{self, Import};
use super::{Format, Refusal, receive, rejected};
use crate::service::Service;
use crate::service::problem::Problem;

pub(crate) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(read, cancel))
        .routes(routes!(read_rejected))
}

/// The company of the path: its id and its region.
async fn company(service: &Service, id: i64) -> Result<(i64, String), Problem> {
    let found = sqlx::query_as("select id, region from companies where id = $1").bind(id);
    found.fetch_optional(&service.pool).await?.ok_or_else(|| Problem::not_found("there is no such company"))
}

fn no_import() -> Problem {
    Problem::not_found("there is no such import")
}

/// Imports contacts from a file, in the background
///
/// CSV has a header that names its columns: `phone`, and `name` and `email` if there are any. NDJSON has an object of the
/// same on each line. A contact that exists gets the name and the e-mail address of the file; what a row leaves out or
/// empty stays as it is. Of several rows with one phone number the last one counts.
#[utoipa::path(post, path = "/companies/{company}/contacts/imports", tag = "imports",
    params(("company" = i64, Path, description = "The company")),
    request_body(content((String = "text/csv"), (String = "application/x-ndjson"))),
    responses((status = 202, body = Import, headers(("location" = String, description = "Where its state is")))))]
async fn create(
    State(service): State<Arc<Service>>,
    path: Result<Path<i64>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (company, region) = company(&service, company_id(path)?).await?;
    let format = format(&headers)?;
    let imports = &service.imports;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > imports.settings.max_bytes) {
        return Err(Refusal::TooLarge(imports.settings.max_bytes).into());
    }
    let id = receive::receive(imports, company, &region, format, body.into_data_stream()).await?;
    let import = status::find(&service.pool, company, id).await?.ok_or_else(no_import)?;
    let location = format!("/api/v1/companies/{company}/contacts/imports/{id}");
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(import)).into_response())
}

/// The newest imports of a company
#[utoipa::path(get, path = "/companies/{company}/contacts/imports", tag = "imports",
    params(("company" = i64, Path, description = "The company")), responses((status = 200, body = Vec<Import>)))]
async fn list(
    State(service): State<Arc<Service>>,
    path: Result<Path<i64>, PathRejection>,
) -> Result<Json<Vec<Import>>, Problem> {
    let (company, _) = company(&service, company_id(path)?).await?;
    Ok(Json(status::list(&service.pool, company).await?))
}

/// How far an import is
#[utoipa::path(get, path = "/companies/{company}/contacts/imports/{id}", tag = "imports",
    params(("company" = i64, Path, description = "The company"), ("id" = Uuid, Path, description = "The import")),
    responses((status = 200, body = Import)))]
async fn read(
    State(service): State<Arc<Service>>,
    path: Result<Path<(i64, Uuid)>, PathRejection>,
) -> Result<Json<Import>, Problem> {
    let (company, id) = import_of(&service, path).await?;
    status::find(&service.pool, company, id).await?.map(Json).ok_or_else(no_import)
}

/// Stops an import; the rows that were applied stay
#[utoipa::path(delete, path = "/companies/{company}/contacts/imports/{id}", tag = "imports",
    params(("company" = i64, Path, description = "The company"), ("id" = Uuid, Path, description = "The import")),
    responses((status = 200, body = Import)))]
async fn cancel(
    State(service): State<Arc<Service>>,
    path: Result<Path<(i64, Uuid)>, PathRejection>,
) -> Result<Json<Import>, Problem> {
    let (company, id) = import_of(&service, path).await?;
    let import = status::cancel(&service.pool, company, id).await?.ok_or_else(no_import)?;
    service.imports.untidy.notify_one();
    Ok(Json(import))
}

/// The rows that an import rejected, with their lines and reasons, as a CSV file
///
/// The first million, if not set otherwise. A record is cut at 1 KiB; one that begins like a spreadsheet's formula has an apostrophe before it.
#[utoipa::path(get, path = "/companies/{company}/contacts/imports/{id}/rejected", tag = "imports",
    params(("company" = i64, Path, description = "The company"), ("id" = Uuid, Path, description = "The import")),
    responses((status = 200, body = String, content_type = "text/csv")))]
async fn read_rejected(
    State(service): State<Arc<Service>>,
    path: Result<Path<(i64, Uuid)>, PathRejection>,
) -> Result<Response, Problem> {
    let (company, id) = import_of(&service, path).await?;
    status::find(&service.pool, company, id).await?.ok_or_else(no_import)?;
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"rejected-{id}.csv\"")),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    Ok((headers, Body::from_stream(rejected::file(service.pool.clone(), id))).into_response())
}

fn company_id(path: Result<Path<i64>, PathRejection>) -> Result<i64, Problem> {
    path.map(|Path(id)| id).map_err(|_rejected| Problem::bad_request("company: must be an integer"))
}

async fn import_of(
    service: &Service,
    path: Result<Path<(i64, Uuid)>, PathRejection>,
) -> Result<(i64, Uuid), Problem> {
    let Path((id, import)) = path.map_err(|_rejected| no_import())?;
    Ok((company(service, id).await?.0, import))
}

/// By the content type. Only UTF-8, and as it is.
fn format(headers: &HeaderMap) -> Result<Format, Problem> {
    let unsupported = |detail: &str| Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    let given = |name| headers.get(name).and_then(|given| given.to_str().ok()).unwrap_or_default();
    let coding = given(header::CONTENT_ENCODING);
    if !(coding.is_empty() || coding.eq_ignore_ascii_case("identity")) {
        return unsupported("content-encoding: a file must come as it is");
    }
    let mut parts = given(header::CONTENT_TYPE).split(';').map(|part| part.trim().to_ascii_lowercase());
    let format = match parts.next().as_deref() {
        Some("text/csv") => Format::Csv,
        Some("application/x-ndjson") => Format::Ndjson,
        _ => return unsupported("content-type: must be text/csv or application/x-ndjson"),
    };
    let charset = parts.find_map(|part| Some(part.strip_prefix("charset=")?.trim_matches('"').to_owned()));
    match charset.as_deref() {
        None | Some("utf-8" | "utf8" | "us-ascii") => Ok(format),
        Some(_) => unsupported("content-type: the charset must be utf-8"),
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal {
            Refusal::Database(error) => return error.into(),
            Refusal::Header(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Refusal::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            Refusal::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Refusal::Idle => StatusCode::REQUEST_TIMEOUT,
            Refusal::BrokenOff => StatusCode::BAD_REQUEST,
            Refusal::Cancelled => StatusCode::CONFLICT,
            Refusal::NoCompany => StatusCode::NOT_FOUND,
        };
        let body = matches!(refusal, Refusal::TooLarge(_) | Refusal::Idle | Refusal::BrokenOff);
        Self::new(status, if body { format!("body: {refusal}") } else { refusal.to_string() })
    }
}
