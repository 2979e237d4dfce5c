//! Contacts: the people whom a company talks to. By id and by phone, each invalidated by any write to their row.

use std::fmt;
use std::str::FromStr;
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
use super::answer::{Answer, Committed, ReadHeaders, Row, Served};
use super::caches::{NotAKey, share_of};
use super::companies::Tenant;
use super::database::Database;
use super::fair;
use super::input::{self, Body, PathParams};
use super::problem::Problem;
use super::rules;

pub(crate) const CACHE: &str = "contact";
pub(crate) const CACHE_BY_PHONE: &str = "contact_by_phone";
/// The topic of each company's contacts.
pub(crate) const OF_COMPANY: &str = "contacts_of_company";

pub(crate) type Contacts = Cache<i64, Row<Contact>>;
pub(crate) type ContactsByPhone = Cache<ByPhone, Row<Contact>>;

/// A contact.
#[derive(Debug, Clone, Serialize, Deserialize, FromRow, ToSchema)]
pub(crate) struct Contact {
    pub(crate) id: i64,
    #[serde(rename = "company")]
    pub(crate) company_id: i64,
    /// E.164.
    pub(crate) phone: String,
    pub(crate) name: Option<String>,
    pub(crate) email: Option<String>,
}

/// A phone of a company's contact.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ByPhone {
    pub(crate) company: i64,
    /// E.164.
    pub(crate) phone: String,
}

impl fmt::Display for ByPhone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.company, self.phone)
    }
}

impl FromStr for ByPhone {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let (company, phone) = text.split_once(':').ok_or(NotAKey)?;
        let company = company.parse().map_err(|_no_number| NotAKey)?;
        match phone.contains(char::is_control) {
            true => Err(NotAKey),
            false => Ok(Self { company, phone: phone.to_owned() }),
        }
    }
}

/// A new contact.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewContact {
    /// In any usual form; without a country code it is of the company's region.
    #[schema(min_length = 3, max_length = 64, example = "+351 912 345 678")]
    phone: String,
    #[schema(min_length = 1, max_length = 200, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    name: Option<String>,
    #[schema(min_length = 3, max_length = 254, format = "email")]
    email: Option<String>,
}

/// What to change of a contact. `null` removes a name or an e-mail address.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::option_option, reason = "absent, null, and a value are three things")]
struct ContactChange {
    #[schema(min_length = 3, max_length = 64, nullable = true)]
    phone: Option<String>,
    #[serde(default, deserialize_with = "input::nullable")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 200, pattern = r"^[^\x00-\x1f\x7f-\x9f]+$")]
    name: Option<Option<String>>,
    #[serde(default, deserialize_with = "input::nullable")]
    #[schema(value_type = Option<String>, min_length = 3, max_length = 254, format = "email")]
    email: Option<Option<String>>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct OfCompany {
    #[param(minimum = 1)]
    #[expect(dead_code, reason = "`Tenant` reads it")]
    company: i64,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct ContactPath {
    #[param(minimum = 1)]
    #[expect(dead_code, reason = "`Tenant` reads it")]
    company: i64,
    #[param(minimum = 1)]
    id: i64,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct PhonePath {
    #[param(minimum = 1)]
    #[expect(dead_code, reason = "`Tenant` reads it")]
    company: i64,
    /// In any usual form, `%2B351912345678` or national.
    #[param(min_length = 3, max_length = 64)]
    phone: String,
}

pub(super) fn cache(
    settings: CacheBuilder<i64, Row<Contact>>,
    database: Database,
) -> Result<Contacts, StartError> {
    settings
        .tables(["contacts"])
        .groups(|_, row| share_of(row.map(|row| row.row.company_id)))
        .loader(move |load: Load<i64>| load_contacts(database.clone(), load))
}

async fn load_contacts(
    database: Database,
    load: Load<i64>,
) -> Result<Loaded<i64, Row<Contact>>, sqlx::Error> {
    let sql = "select id, company_id, phone, name, email from contacts where id = any($1)";
    let rows = database.read::<Contact>(sql).bind(load.keys).fetch(&database.pool).await?;
    Ok(rows.by_key(|contact| (contact.id, Row::from(contact))))
}

pub(super) fn cache_by_phone(
    settings: CacheBuilder<ByPhone, Row<Contact>>,
    database: Database,
) -> Result<ContactsByPhone, StartError> {
    settings
        .tables(["contacts"])
        .groups(|key, _| share_of(Some(key.company)))
        .loader(move |load: Load<ByPhone>| load_by_phone(database.clone(), load))
}

async fn load_by_phone(
    database: Database,
    load: Load<ByPhone>,
) -> Result<Loaded<ByPhone, Row<Contact>>, sqlx::Error> {
    let (companies, phones): (Vec<i64>, Vec<String>) =
        load.keys.into_iter().map(|key| (key.company, key.phone)).unzip();
    let sql = "select c.id, c.company_id, c.phone, c.name, c.email from unnest($1::bigint[], $2::text[]) k(company, phone) \
               join contacts c on c.company_id = k.company and c.phone = k.phone";
    let rows = database.read::<Contact>(sql).bind(companies).bind(phones).fetch(&database.pool).await?;
    Ok(rows.by_key(|contact| {
        let key = ByPhone { company: contact.company_id, phone: contact.phone.clone() };
        (key, Row::from(contact))
    }))
}

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(read, change, delete))
        .routes(routes!(read_by_phone))
}

/// A contact by its id
#[utoipa::path(get, path = "/api/v1/companies/{company}/contacts/{id}", tag = "contacts", params(ContactPath, ReadHeaders),
    responses((status = 200, body = Contact)))]
async fn read(
    State(service): State<Arc<Service>>,
    Tenant { company, token, wanted, .. }: Tenant,
    PathParams(path): PathParams<ContactPath>,
) -> Result<Answer, Problem> {
    let read = fair::read(&service.caches.contacts, &path.id, wanted.options()).await?;
    let found = Served::new(&service.caches.contacts, read, "contact", |contact| {
        contact.row.company_id == company.id
    })?;
    Ok(Answer::row(&found.and(token), &wanted))
}

/// A contact by its phone
#[utoipa::path(get, path = "/api/v1/companies/{company}/contacts/by-phone/{phone}", tag = "contacts",
    params(PhonePath, ReadHeaders), responses((status = 200, body = Contact)))]
async fn read_by_phone(
    State(service): State<Arc<Service>>,
    Tenant { company, freshness, token, wanted }: Tenant,
    PathParams(path): PathParams<PhonePath>,
) -> Result<Answer, Problem> {
    let phone = rules::phone(&path.phone, &company.region)?;
    let key = ByPhone { company: company.id, phone };
    let read = fair::read(&service.caches.contacts_by_phone, &key, wanted.options()).await?;
    // Which number it is depends on the company's region.
    let found =
        Served::new(&service.caches.contacts_by_phone, read, "contact", |_| true)?.no_fresher_than(freshness);
    Ok(Answer::row(&found.and(token), &wanted))
}

/// Makes a contact
#[utoipa::path(post, path = "/api/v1/companies/{company}/contacts", tag = "contacts", params(OfCompany),
    request_body = NewContact, responses((status = 201, body = Contact)))]
async fn create(
    State(service): State<Arc<Service>>,
    Tenant { company, .. }: Tenant,
    Body(new): Body<NewContact>,
) -> Result<Response, Problem> {
    let phone = rules::phone(&new.phone, &company.region)?;
    let name = new.name.as_deref().map(rules::name).transpose()?;
    let email = new.email.as_deref().map(rules::email).transpose()?;
    let sql = "insert into contacts (company_id, phone, name, email) values ($1, $2, $3, $4) \
               returning id, company_id, phone, name, email";
    let written = service
        .write(async |tx| {
            let query = service.database.write::<Contact>(sql).bind(company.id).bind(phone);
            query.bind(name).bind(email).fetch_one(tx).await
        })
        .await?;
    let location = format!("/api/v1/companies/{}/contacts/{}", company.id, written.value.id);
    Ok(Committed(written).created(&location))
}

/// Changes a contact
#[utoipa::path(patch, path = "/api/v1/companies/{company}/contacts/{id}", tag = "contacts", params(ContactPath),
    request_body = ContactChange, responses((status = 200, body = Contact)))]
async fn change(
    State(service): State<Arc<Service>>,
    Tenant { company, .. }: Tenant,
    PathParams(path): PathParams<ContactPath>,
    Body(change): Body<ContactChange>,
) -> Result<Committed<Contact>, Problem> {
    let phone = change.phone.map(|phone| rules::phone(&phone, &company.region)).transpose()?;
    let name = change.name.as_ref().map(|name| name.as_deref().map(rules::name).transpose()).transpose()?;
    let email =
        change.email.as_ref().map(|email| email.as_deref().map(rules::email).transpose()).transpose()?;
    let sql = "update contacts set phone = coalesce($3, phone), name = case when $4 then $5 else name end, \
               email = case when $6 then $7 else email end \
               where id = $1 and company_id = $2 returning id, company_id, phone, name, email";
    let written = service
        .write(async |tx| {
            let query = service.database.write::<Contact>(sql).bind(path.id).bind(company.id).bind(phone);
            let query = query.bind(name.is_some()).bind(name.flatten());
            query.bind(email.is_some()).bind(email.flatten()).fetch_optional(tx).await
        })
        .await?;
    Committed::some(written).ok_or_else(|| Problem::not_found("there is no such contact"))
}

/// Deletes a contact
#[utoipa::path(delete, path = "/api/v1/companies/{company}/contacts/{id}", tag = "contacts", params(ContactPath),
    responses((status = 200, body = Contact)))]
async fn delete(
    State(service): State<Arc<Service>>,
    Tenant { company, .. }: Tenant,
    PathParams(path): PathParams<ContactPath>,
) -> Result<Committed<Contact>, Problem> {
    let sql =
        "delete from contacts where id = $1 and company_id = $2 returning id, company_id, phone, name, email";
    let written = service
        .write(async |tx| {
            service.database.write::<Contact>(sql).bind(path.id).bind(company.id).fetch_optional(tx).await
        })
        .await?;
    Committed::some(written).ok_or_else(|| Problem::not_found("there is no such contact"))
}
