//! Inboxes: the chats of a company that were last written to, each with its newest message and whom it is with. By company,
//! invalidated by any write to what they show.

use std::sync::Arc;

use axum::extract::State;
use chrono::{DateTime, Utc};
use perto::{Cache, CacheBuilder, Load, Loaded, StartError, Topic};
use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::Service;
use super::answer::{Answer, ReadHeaders, Row, Served};
use super::caches::share_of;
use super::companies::Tenant;
use super::contacts::OfCompany;
use super::database::Database;
use super::fair;
use super::problem::Problem;

pub(crate) const CACHE: &str = "inbox";

pub(crate) type Inboxes = Cache<i64, Row<Inbox>>;

/// Most chats of an inbox.
const MOST: usize = 50;

/// The chats of a company that were last written to.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct Inbox {
    company: i64,
    /// At most 50: the one with the newest message first, those without any last.
    chats: Vec<Chat>,
    /// Whether there are others.
    more: bool,
}

/// A chat, as an inbox shows it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Chat {
    chat: Uuid,
    /// Whom it is with, where a message has said so.
    contact: Option<With>,
    last_message: Option<LastMessage>,
}

/// The contact of a chat.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
struct With {
    id: i64,
    name: Option<String>,
    /// E.164.
    phone: String,
}

/// The newest message of a chat.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct LastMessage {
    id: i64,
    /// `contact`, `user` or `assistant`.
    sender: String,
    /// Its first 200 characters.
    body: String,
    created_at: DateTime<Utc>,
}

/// A row of the load: a company has one without a chat where it has none.
#[derive(Debug, FromRow)]
struct Line {
    company: i64,
    chat: Option<Uuid>,
    last_message_id: Option<i64>,
    last_message_at: Option<DateTime<Utc>>,
    last_sender: Option<String>,
    last_body: Option<String>,
    contact_id: Option<i64>,
    name: Option<String>,
    phone: Option<String>,
}

impl Line {
    fn chat(self) -> Option<Chat> {
        let contact = self.contact_id.zip(self.phone);
        let message =
            self.last_message_id.zip(self.last_sender).zip(self.last_body.zip(self.last_message_at));
        Some(Chat {
            chat: self.chat?,
            contact: contact.map(|(id, phone)| With { id, name: self.name, phone }),
            last_message: message.map(|((id, sender), (body, created_at))| LastMessage {
                id,
                sender,
                body,
                created_at,
            }),
        })
    }
}

impl Inbox {
    /// Of the lines of one company, in their order, of which there may be one too many.
    fn of(company: i64, lines: impl Iterator<Item = Line>) -> Self {
        let mut chats: Vec<Chat> = lines.filter_map(Line::chat).collect();
        let more = chats.len() > MOST;
        chats.truncate(MOST);
        Self { company, chats, more }
    }
}

pub(super) fn cache(
    settings: CacheBuilder<i64, Row<Inbox>>,
    database: Database,
    contacts: Topic<i64>,
) -> Result<Inboxes, StartError> {
    settings
        .tables(["chats"])
        .groups(|company, _| share_of(Some(*company)))
        .loader(move |load: Load<i64>| load_inboxes(database.clone(), load, contacts.clone()))
}

async fn load_inboxes(
    database: Database,
    load: Load<i64>,
    contacts: Topic<i64>,
) -> Result<Loaded<i64, Row<Inbox>>, sqlx::Error> {
    // One more than is shown tells whether there are others.
    let sql = "select k.company, c.id as chat, c.last_message_id, c.last_message_at, c.last_sender, c.last_body, \
                 p.id as contact_id, p.name, p.phone \
               from unnest($1::bigint[]) k(company) left join lateral ( \
                 select * from chats where company_id = k.company order by last_message_at desc nulls last, id desc limit $2 \
               ) c on true \
               left join contacts p on p.id = c.contact_id and p.company_id = k.company \
               order by k.company, c.last_message_at desc nulls last, c.id desc";
    let most = i64::try_from(MOST + 1).unwrap_or(i64::MAX);
    let rows = database.read::<Line>(sql).bind(load.keys).bind(most).fetch(&database.pool).await?;
    let mut lines = rows.rows.into_iter().peekable();
    let mut loaded = Loaded::new(rows.stamp);
    while let Some(company) = lines.peek().map(|line| line.company) {
        let own = std::iter::from_fn(|| lines.next_if(|line| line.company == company));
        loaded = loaded.with(company, Row::from(Inbox::of(company, own)));
    }
    // Of whom the chats are with: more than a value may name one by one, and they may move to another company and back.
    Ok(loaded.depends_on(move |company, _| [contacts.key(company)]))
}

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(read))
}

/// The chats that were last written to, with their newest messages
#[utoipa::path(get, path = "/api/v1/companies/{company}/inbox", tag = "companies", params(OfCompany, ReadHeaders),
    responses((status = 200, body = Inbox)))]
async fn read(
    State(service): State<Arc<Service>>,
    Tenant { company, token, wanted, .. }: Tenant,
) -> Result<Answer, Problem> {
    let read = fair::read(&service.caches.inboxes, &company.id, wanted.options()).await?;
    Ok(Answer::row(&Served::new(&service.caches.inboxes, read, "inbox", |_| true)?.and(token), &wanted))
}
