//! Companies: by id, invalidated by any write to their row.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use perto::{Cache, Load, Loaded, Perto, StartError, postgres};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgPool};

use super::Service;
use super::consistency::{self, Answer, Done};
use super::problem::Problem;

pub(super) const CACHE: &str = "company";

pub(super) type Companies = Cache<i64, Company>;

/// A company, as it is cached and served.
#[derive(Debug, Clone, Serialize, Deserialize, FromRow)]
pub(crate) struct Company {
    id: i64,
    name: String,
    region: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct New {
    name: String,
    region: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    name: Option<String>,
    region: Option<String>,
}

pub(super) fn cache(perto: &Perto, pool: PgPool) -> Result<Companies, StartError> {
    perto
        .cache(CACHE)
        .tables(["companies"])
        .ttl(Duration::from_mins(30))
        .loader(move |load: Load<i64>| load_companies(pool.clone(), load))
}

async fn load_companies(pool: PgPool, load: Load<i64>) -> Result<Loaded<i64, Company>, sqlx::Error> {
    let rows = postgres::query_as::<Company>("select id, name, region from companies where id = any($1)")
        .bind(load.keys)
        .fetch(&pool)
        .await?;
    Ok(rows.by_key(|company| (company.id, company)))
}

pub(super) async fn read(
    State(service): State<Arc<Service>>,
    id: Result<Path<i64>, PathRejection>,
    headers: HeaderMap,
) -> Result<Answer<Company>, Problem> {
    let read = service.companies.get_with(&company_id(id)?, consistency::options(&headers)?).await?;
    Answer::new(read).ok_or_else(|| Problem::not_found("there is no such company"))
}

pub(super) async fn create(
    State(service): State<Arc<Service>>,
    body: Result<Json<New>, JsonRejection>,
) -> Result<impl IntoResponse, Problem> {
    let Json(new) = body?;
    check(Some(&new.name), Some(&new.region))?;
    let written = service
        .perto
        .write(&service.pool, async |tx| {
            sqlx::query_as::<_, Company>(
                "insert into companies (name, region) values ($1, $2) returning id, name, region",
            )
            .bind(new.name)
            .bind(new.region)
            .fetch_one(tx)
            .await
        })
        .await?;
    Ok((StatusCode::CREATED, Done(written)))
}

pub(super) async fn change(
    State(service): State<Arc<Service>>,
    id: Result<Path<i64>, PathRejection>,
    body: Result<Json<Change>, JsonRejection>,
) -> Result<Done<Company>, Problem> {
    let (id, Json(change)) = (company_id(id)?, body?);
    check(change.name.as_deref(), change.region.as_deref())?;
    let written = service
        .perto
        .write(&service.pool, async |tx| {
            sqlx::query_as::<_, Company>(
                "update companies set name = coalesce($2, name), region = coalesce($3, region) where id = $1 \
                 returning id, name, region",
            )
            .bind(id)
            .bind(change.name)
            .bind(change.region)
            .fetch_optional(tx)
            .await
        })
        .await?;
    Done::some(written).ok_or_else(|| Problem::not_found("there is no such company"))
}

pub(super) async fn delete(
    State(service): State<Arc<Service>>,
    id: Result<Path<i64>, PathRejection>,
) -> Result<Done<Company>, Problem> {
    let id = company_id(id)?;
    let written = service
        .perto
        .write(&service.pool, async |tx| {
            sqlx::query_as::<_, Company>("delete from companies where id = $1 returning id, name, region")
                .bind(id)
                .fetch_optional(tx)
                .await
        })
        .await?;
    Done::some(written).ok_or_else(|| Problem::not_found("there is no such company"))
}

fn company_id(id: Result<Path<i64>, PathRejection>) -> Result<i64, Problem> {
    match id {
        Ok(Path(id)) => Ok(id),
        Err(_rejected) => Err(Problem::bad_request("id: must be an integer")),
    }
}

fn check(name: Option<&str>, region: Option<&str>) -> Result<(), Problem> {
    if name.is_some_and(|name| !(1..=200).contains(&name.chars().count()) || name.contains('\0')) {
        return Err(Problem::unprocessable("name: must have 1 to 200 characters"));
    }
    if region.is_some_and(|region| region.len() != 2 || !region.bytes().all(|b| b.is_ascii_uppercase())) {
        return Err(Problem::unprocessable("region: must be two capital letters, like PT"));
    }
    Ok(())
}
