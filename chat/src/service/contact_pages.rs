//! Contacts by name, in pages. By company, page and size, invalidated by any write to a contact of the company.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::State;
use perto::{Cache, CacheBuilder, Load, Loaded, StartError, Topic};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Service;
use super::answer::{Answer, ReadHeaders, Row, Served};
use super::caches::{NotAKey, share_of};
use super::companies::Tenant;
use super::contacts::{Contact, OfCompany};
use super::database::Database;
use super::fair;
use super::input::Query;
use super::problem::Problem;

pub(crate) const CACHE: &str = "contact_page";

pub(crate) type ContactPages = Cache<PageKey, Row<ContactPage>>;

/// So many pages and sizes there are: nobody can make more entries of a company.
const PAGES: u32 = 1_000;
const MAX_SIZE: u32 = 100;
const SIZE_STEP: u32 = 10;

/// A page of a company's contacts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct PageKey {
    company: i64,
    page: u32,
    size: u32,
}

impl fmt::Display for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.company, self.page, self.size)
    }
}

impl FromStr for PageKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let mut parts = text.split(':');
        let mut next = || parts.next().ok_or(NotAKey);
        let (company, page, size) = (next()?, next()?, next()?);
        let number = |text: &str| text.parse().map_err(|_no_number| NotAKey);
        let key = Self {
            company: company.parse().map_err(|_no_number| NotAKey)?,
            page: number(page)?,
            size: number(size)?,
        };
        // One spelling each.
        if key.to_string() == text && key.flaw().is_none() { Ok(key) } else { Err(NotAKey) }
    }
}

impl PageKey {
    /// What is wrong with it, by the parameter.
    fn flaw(&self) -> Option<(&'static str, String)> {
        if !(1..=PAGES).contains(&self.page) {
            return Some(("page", format!("must be 1 to {PAGES}")));
        }
        if !(SIZE_STEP..=MAX_SIZE).contains(&self.size) || !self.size.is_multiple_of(SIZE_STEP) {
            return Some(("size", format!("must be {SIZE_STEP}, {}, … or {MAX_SIZE}", 2 * SIZE_STEP)));
        }
        None
    }
}

/// A page of a company's contacts.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct ContactPage {
    company: i64,
    /// By name, in the order of the database's language; those without a name last.
    contacts: Vec<Contact>,
    /// Whether there are others behind these.
    more: bool,
}

/// Which page.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Page {
    #[serde(default = "first")]
    #[param(minimum = 1, maximum = 1_000, default = 1)]
    page: u32,
    /// Contacts of a page.
    #[serde(default = "usual")]
    #[param(minimum = 10, maximum = 100, multiple_of = 10, default = 50)]
    size: u32,
}

const fn first() -> u32 {
    1
}

const fn usual() -> u32 {
    50
}

/// A row of the load: a page has one without a contact where it has none.
#[derive(Debug, FromRow)]
struct Line {
    company: i64,
    page: i32,
    size: i32,
    id: Option<i64>,
    phone: Option<String>,
    name: Option<String>,
    email: Option<String>,
}

impl Line {
    fn key(&self) -> PageKey {
        PageKey { company: self.company, page: self.page.unsigned_abs(), size: self.size.unsigned_abs() }
    }

    fn contact(self) -> Option<Contact> {
        let Self { company, name, email, .. } = self;
        Some(Contact { id: self.id?, company_id: company, phone: self.phone?, name, email })
    }
}

pub(super) fn cache(
    settings: CacheBuilder<PageKey, Row<ContactPage>>,
    database: Database,
    contacts: Topic<i64>,
) -> Result<ContactPages, StartError> {
    settings
        // All that it reads it depends on by the topic.
        .tables([""; 0])
        .groups(|key, _| share_of(Some(key.company)))
        .loader(move |load: Load<PageKey>| load_pages(database.clone(), load, contacts.clone()))
}

async fn load_pages(
    database: Database,
    load: Load<PageKey>,
    contacts: Topic<i64>,
) -> Result<Loaded<PageKey, Row<ContactPage>>, sqlx::Error> {
    let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let companies: Vec<i64> = load.keys.iter().map(|key| key.company).collect();
    let (pages, sizes): (Vec<i32>, Vec<i32>) =
        load.keys.iter().map(|key| (number(key.page), number(key.size))).unzip();
    // One more than is shown tells whether there are others. Those before are passed over in the index, without a look at their rows.
    let sql = "select k.company, k.page, k.size, c.id, c.phone, c.name, c.email \
               from unnest($1::bigint[], $2::int[], $3::int[]) with ordinality k(company, page, size, place) left join lateral ( \
                 select id, phone, name, email from contacts where id = any(array( \
                   select id from contacts where company_id = k.company \
                   order by name, id limit k.size + 1 offset (k.page - 1) * k.size)) \
               ) c on true order by k.place, c.name, c.id";
    let query = database.read::<Line>(sql).bind(companies).bind(pages).bind(sizes);
    let rows = query.fetch(&database.pool).await?;
    let mut lines = rows.rows.into_iter().peekable();
    let mut loaded = Loaded::new(rows.stamp);
    while let Some(key) = lines.peek().map(Line::key) {
        let own = std::iter::from_fn(|| lines.next_if(|line| line.key() == key));
        let mut contacts: Vec<Contact> = own.filter_map(Line::contact).collect();
        let size = usize::try_from(key.size).unwrap_or(usize::MAX);
        let more = contacts.len() > size;
        contacts.truncate(size);
        loaded = loaded.with(key, Row::from(ContactPage { company: key.company, contacts, more }));
    }
    Ok(loaded.depends_on(move |key, _| [contacts.key(&key.company)]))
}

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(read))
}

/// A company's contacts by name
#[utoipa::path(get, path = "/api/v1/companies/{company}/contacts", tag = "contacts", params(OfCompany, Page, ReadHeaders),
    responses((status = 200, body = ContactPage)))]
async fn read(
    State(service): State<Arc<Service>>,
    Tenant { company, token, wanted, .. }: Tenant,
    Query(Page { page, size }): Query<Page>,
) -> Result<Answer, Problem> {
    let key = PageKey { company: company.id, page, size };
    if let Some((field, wrong)) = key.flaw() {
        return Err(Problem::bad(field, &wrong));
    }
    let read = fair::read(&service.caches.contact_pages, &key, wanted.options()).await?;
    Ok(Answer::row(&Served::new(&service.caches.contact_pages, read, "page", |_| true)?.and(token), &wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_one_spelling_and_only_pages_that_may_be_asked_for_have_one() {
        let key = PageKey { company: 7, page: 12, size: 50 };
        assert_eq!(key.to_string().parse::<PageKey>().unwrap(), key);
        for text in [
            "",
            "7",
            "7:1",
            "7:1:50:",
            "7:1:50:1",
            "7:01:50",
            "7:+1:50",
            "7:0:50",
            "7:1001:50",
            "7:1:0",
            "7:1:55",
            "7:1:110",
            "x:1:50",
            "7:1:-10",
        ] {
            assert!(text.parse::<PageKey>().is_err(), "{text}");
        }
    }
}
