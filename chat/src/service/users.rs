//! Users: the people of a company. By id, invalidated by any write to their row.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use perto::{Cache, CacheBuilder, Load, Loaded, StartError};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Service;
use super::access::Caller;
use super::answer::{Answer, Committed, Preconditions, ReadHeaders, Row, Served};
use super::caches::share_of;
use super::database::Database;
use super::fair;
use super::input::{Body, PathParams};
use super::problem::Problem;
use super::rules;

pub(crate) const CACHE: &str = "user";

pub(crate) type Users = Cache<i64, Row<User>>;

/// A user.
#[derive(Debug, Clone, Serialize, Deserialize, FromRow, ToSchema)]
pub(crate) struct User {
    id: i64,
    #[serde(rename = "company")]
    company_id: i64,
    name: String,
    email: String,
    role: String,
}

/// What a user may do in the product.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Role {
    Agent,
    Admin,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Admin => "admin",
        }
    }
}

/// A new user, of the company of the key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewUser {
    #[schema(min_length = 1, max_length = 200, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$", example = "Ada")]
    name: String,
    #[schema(min_length = 3, max_length = 254, format = "email", example = "ada@example.com")]
    email: String,
    /// `agent` where it is not said.
    role: Option<Role>,
}

/// What to change of a user.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct UserChange {
    #[schema(min_length = 1, max_length = 200, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$", nullable = true)]
    name: Option<String>,
    #[schema(min_length = 3, max_length = 254, format = "email", nullable = true)]
    email: Option<String>,
    role: Option<Role>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct UserPath {
    #[param(minimum = 1)]
    id: i64,
}

pub(super) fn cache(settings: CacheBuilder<i64, Row<User>>, database: Database) -> Result<Users, StartError> {
    settings
        .tables(["users"])
        .groups(|_, row| share_of(row.map(|row| row.row.company_id)))
        .loader(move |load: Load<i64>| load_users(database.clone(), load))
}

async fn load_users(database: Database, load: Load<i64>) -> Result<Loaded<i64, Row<User>>, sqlx::Error> {
    let sql = "select id, company_id, name, email, role from users where id = any($1)";
    let rows = database.read::<User>(sql).bind(load.keys).fetch(&database.pool).await?;
    Ok(rows.by_key(|user| (user.id, Row::from(user))))
}

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(create)).routes(routes!(read, change, delete))
}

/// A user by its id
#[utoipa::path(get, path = "/api/v1/users/{id}", tag = "users", params(UserPath, ReadHeaders),
    responses((status = 200, body = User)))]
async fn read(
    State(service): State<Arc<Service>>,
    caller: Caller,
    PathParams(path): PathParams<UserPath>,
    wanted: Preconditions,
) -> Result<Answer, Problem> {
    let read = fair::read(&service.caches.users, &path.id, wanted.options()).await?;
    let found = Served::new(&service.caches.users, read, "user", |user| caller.may(user.row.company_id))?;
    Ok(Answer::row(&found, &wanted))
}

/// Makes a user of the caller's company
#[utoipa::path(post, path = "/api/v1/users", tag = "users", request_body = NewUser, responses((status = 201, body = User)))]
async fn create(
    State(service): State<Arc<Service>>,
    caller: Caller,
    Body(new): Body<NewUser>,
) -> Result<Response, Problem> {
    let company = caller.own_company()?;
    let (name, email) = (rules::name(&new.name)?, rules::email(&new.email)?);
    let sql = "insert into users (company_id, name, email, role) values ($1, $2, $3, $4) \
               returning id, company_id, name, email, role";
    let written = service
        .write(async |tx| {
            let query = service.database.write::<User>(sql).bind(company).bind(name).bind(email);
            query.bind(new.role.unwrap_or(Role::Agent).name()).fetch_one(tx).await
        })
        .await?;
    let location = format!("/api/v1/users/{}", written.value.id);
    Ok(Committed(written).created(&location))
}

/// Changes a user
#[utoipa::path(patch, path = "/api/v1/users/{id}", tag = "users", params(UserPath), request_body = UserChange,
    responses((status = 200, body = User)))]
async fn change(
    State(service): State<Arc<Service>>,
    caller: Caller,
    PathParams(path): PathParams<UserPath>,
    Body(change): Body<UserChange>,
) -> Result<Committed<User>, Problem> {
    let name = change.name.as_deref().map(rules::name).transpose()?;
    let email = change.email.as_deref().map(rules::email).transpose()?;
    let sql = "update users set name = coalesce($3, name), email = coalesce($4, email), role = coalesce($5, role) \
               where id = $1 and ($2::bigint is null or company_id = $2) returning id, company_id, name, email, role";
    let written = service
        .write(async |tx| {
            let query = service.database.write::<User>(sql).bind(path.id).bind(caller.company());
            let query = query.bind(name).bind(email).bind(change.role.map(Role::name));
            query.fetch_optional(tx).await
        })
        .await?;
    Committed::some(written).ok_or_else(|| Problem::not_found("there is no such user"))
}

/// Deletes a user
#[utoipa::path(delete, path = "/api/v1/users/{id}", tag = "users", params(UserPath),
    responses((status = 200, body = User)))]
async fn delete(
    State(service): State<Arc<Service>>,
    caller: Caller,
    PathParams(path): PathParams<UserPath>,
) -> Result<Committed<User>, Problem> {
    let sql = "delete from users where id = $1 and ($2::bigint is null or company_id = $2) \
               returning id, company_id, name, email, role";
    let written = service
        .write(async |tx| {
            service.database.write::<User>(sql).bind(path.id).bind(caller.company()).fetch_optional(tx).await
        })
        .await?;
    Committed::some(written).ok_or_else(|| Problem::not_found("there is no such user"))
}
