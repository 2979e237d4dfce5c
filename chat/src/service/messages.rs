//! Message history. One entry a chat holds its newest messages, as the JSON that is served: any `limit`, `from_date` and
//! `before` that they cover is a slice of it. Older pages come from Postgres.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, NaiveDate, Utc};
use perto::{Cache, CacheBuilder, Freshness, Load, Loaded, StartError, Tier};
use serde::{Deserialize, Deserializer, Serialize};
use sqlx::FromRow;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::Service;
use super::access::Caller;
use super::answer::{Answer, Committed, Preconditions, Quality, ReadHeaders, Rendered, Served};
use super::caches::share_of;
use super::database::Database;
use super::fair;
use super::input::{self, PathParams, Query};
use super::problem::{Kind, Problem};
use window::Window;

pub(crate) mod window;

pub(crate) const CACHE: &str = "message";

pub(crate) type Messages = Cache<Uuid, Window>;

/// Most messages of one answer.
pub(crate) const MOST: usize = 500;
/// Most bytes of text of one answer, and of what one entry holds: a page ends before the message that would be too much.
pub(crate) const MAX_BYTES: usize = 1024 * 1024;

/// A message.
#[derive(Debug, Serialize, FromRow, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Message {
    id: i64,
    /// `contact`, `user` or `assistant`.
    sender: String,
    body: String,
    created_at: DateTime<Utc>,
}

/// A page of a chat's history.
#[derive(Debug, Serialize, ToSchema)]
struct MessagePage {
    chat: Uuid,
    /// The newest first.
    messages: Vec<Message>,
    /// Whether there are older ones: ask again with `before` and the last one's id.
    more: bool,
}

/// Who wrote a message.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Sender {
    Contact,
    User,
    Assistant,
}

impl Sender {
    const fn name(self) -> &'static str {
        match self {
            Self::Contact => "contact",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A new message. A chat begins with its first one.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewMessage {
    sender: Sender,
    #[schema(
        min_length = 1,
        max_length = 8_000,
        pattern = r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]+$",
        example = "Hello"
    )]
    body: String,
    /// Whom the chat is with from now on, as inboxes show it: a contact of its company. What was said before stays where this
    /// says nothing.
    #[schema(minimum = 1, nullable = true)]
    contact: Option<i64>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct ChatPath {
    /// Chosen by the client.
    chat: Uuid,
}

/// Which messages.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Page {
    /// How many at most.
    #[serde(default = "usual")]
    #[param(minimum = 1, maximum = 500, default = 100)]
    limit: usize,
    /// None that are older: a time of RFC 3339, or a date in UTC.
    #[serde(default, deserialize_with = "date")]
    #[param(value_type = Option<String>, format = "date-time", required = false, nullable = false)]
    from_date: Option<DateTime<Utc>>,
    /// Only what is older than this message of the chat.
    #[param(minimum = 1, required = false, nullable = false)]
    before: Option<i64>,
}

const fn usual() -> usize {
    100
}

fn date<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let time = DateTime::parse_from_rfc3339(&text).map(|time| time.to_utc()).ok();
    let day = || Some(NaiveDate::parse_from_str(&text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0)?.and_utc());
    // Postgres has no times much beyond these.
    let time = time.or_else(day).filter(|time| (0..=9999).contains(&chrono::Datelike::year(time)));
    time.map(Some).ok_or_else(|| serde::de::Error::custom("must be like 2026-01-31T12:00:00Z or 2026-01-31"))
}

pub(super) fn cache(
    settings: CacheBuilder<Uuid, Window>,
    database: Database,
    window: usize,
) -> Result<Messages, StartError> {
    // Of version 1 the JSON has no end.
    let settings = settings
        .version(2)
        .tables(["chats", "messages"])
        .groups(|_, window| share_of(window.map(|window| window.company)));
    settings.loader(move |load: Load<Uuid>| load_windows(database.clone(), load, window))
}

/// Of messages, the newest first, those whose text is within a number of bytes, and one more.
macro_rules! within_bytes {
    ($messages:literal, $bytes:literal) => {
        concat!(
            "select id, sender, body, created_at from (select n.*, row_number() over newest as place, ",
            "sum(octet_length(body)) over newest - octet_length(body) as newer from (",
            $messages,
            ") n window newest as (order by created_at desc, id desc rows unbounded preceding)) w ",
            "where newer <= ",
            $bytes,
            " or place <= 2"
        )
    };
}

/// How many of the messages, by the bytes of their text, are a page of so many.
fn fitting(texts: impl Iterator<Item = usize>, messages: usize) -> usize {
    let mut bytes = 0_usize;
    let fits = |(at, text): &(usize, usize)| {
        bytes = bytes.saturating_add(*text);
        *at == 0 || bytes <= MAX_BYTES
    };
    texts.enumerate().take(messages).take_while(fits).count()
}

fn bytes(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

async fn load_windows(
    database: Database,
    load: Load<Uuid>,
    window: usize,
) -> Result<Loaded<Uuid, Window>, sqlx::Error> {
    // One more than is kept tells whether there are older ones.
    let sql = concat!(
        "select c.id as chat, c.company_id, m.* from chats c left join lateral (",
        within_bytes!(
            "select id, sender, body, created_at from messages where chat_id = c.id \
             order by created_at desc, id desc limit $2",
            "$3"
        ),
        ") m on true where c.id = any($1) order by c.id, m.created_at desc, m.id desc"
    );
    let rows = database
        .read::<window::Line>(sql)
        .bind(load.keys)
        .bind(i64::try_from(window).unwrap_or(i64::MAX).saturating_add(1))
        .bind(bytes(MAX_BYTES))
        .fetch(&database.pool)
        .await?;
    let windows = rows.rows.chunk_by(|a, b| a.chat == b.chat).map(|lines| Window::of(lines, window));
    Ok(windows.fold(Loaded::new(rows.stamp), |loaded, (chat, window)| loaded.with(chat, window)))
}

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(read, create))
}

/// A chat's history, the newest first
#[utoipa::path(get, path = "/api/v1/chats/{chat}/messages", tag = "chats", params(ChatPath, Page, ReadHeaders),
    responses((status = 200, body = MessagePage)))]
async fn read(
    State(service): State<Arc<Service>>,
    caller: Caller,
    PathParams(path): PathParams<ChatPath>,
    Query(page): Query<Page>,
    wanted: Preconditions,
) -> Result<Answer, Problem> {
    if !(1..=MOST).contains(&page.limit) {
        return Err(Problem::bad("limit", &format!("must be 1 to {MOST}")));
    }
    let read = fair::read(&service.caches.messages, &path.chat, wanted.options()).await?;
    if read.tier != Tier::Local {
        fair::fetched(read.value().map_or(0, |window| window.bytes()));
    }
    let found = Served::new(&service.caches.messages, read, "chat", |window| caller.may(window.company))?;
    let window = usize::try_from(service.settings.sizes.message_window).unwrap_or(usize::MAX);
    match found.value().slice(&page, window) {
        Some(slice) => Ok(Answer::rendered(found.quality, &wanted, &found.value().rendered(slice))),
        None => older(&service, path.chat, &found, &page, &wanted).await,
    }
}

/// What no window covers, from Postgres: if the chat is still whose it was in the window.
async fn older(
    service: &Service,
    chat: Uuid,
    found: &Served<Window>,
    page: &Page,
    wanted: &Preconditions,
) -> Result<Answer, Problem> {
    let (database, _turn) = (&service.database, fair::turn().await);
    if let Some(before) = page.before {
        let sql = "select id from messages where id = $2 and chat_id = $1";
        let query = database.read::<(i64,)>(sql).bind(chat).bind(before);
        if query.fetch(&database.pool).await?.rows.is_empty() {
            return Err(Problem::of(Kind::NotFound, "before", "is no message of this chat, or no longer"));
        }
    }
    let sql = concat!(
        within_bytes!(
            "select m.id, m.sender, m.body, m.created_at from messages m join chats c on c.id = m.chat_id \
             where m.chat_id = $1 and c.company_id = $5 and ($3::timestamptz is null or m.created_at >= $3) \
             and ($4::bigint is null or (m.created_at, m.id) < \
               (select b.created_at, b.id from messages b where b.id = $4 and b.chat_id = $1)) \
             order by m.created_at desc, m.id desc limit $2",
            "$6"
        ),
        " order by created_at desc, id desc"
    );
    let limit = i64::try_from(page.limit).unwrap_or(i64::MAX);
    let query = database.read::<Message>(sql).bind(chat).bind(limit + 1);
    let query =
        query.bind(page.from_date).bind(page.before).bind(found.value().company).bind(bytes(MAX_BYTES));
    let mut messages = query.fetch(&database.pool).await?.rows;
    let fitting = fitting(messages.iter().map(|message| message.body.len()), page.limit);
    let more = messages.len() > fitting;
    messages.truncate(fitting);
    let body = serde_json::to_vec(&MessagePage { chat, messages, more }).unwrap_or_default();
    fair::fetched(body.len());
    // The primary has just been asked. The window's token would not contain what it said.
    let quality =
        Quality { freshness: Freshness::Fresh, tier: Tier::Load, token: None, modes: found.quality.modes };
    Ok(Answer::rendered(quality, wanted, &Rendered::new(body)))
}

/// Adds a message
#[utoipa::path(post, path = "/api/v1/chats/{chat}/messages", tag = "chats", params(ChatPath), request_body = NewMessage,
    responses((status = 201, body = Message)))]
async fn create(
    State(service): State<Arc<Service>>,
    caller: Caller,
    PathParams(path): PathParams<ChatPath>,
    input::Body(new): input::Body<NewMessage>,
) -> Result<Response, Problem> {
    input::text("body", &new.body, 8_000, &['\n', '\t'])?;
    let sql = "insert into messages (chat_id, sender, body) \
               select id, $3, $4 from chats where id = $1 and ($2::bigint is null or company_id = $2) \
               returning id, sender, body, created_at";
    let written = service
        .write(async |tx| {
            let insert = || {
                let query = service.database.write::<Message>(sql).bind(path.chat).bind(caller.company());
                query.bind(new.sender.name()).bind(&new.body)
            };
            let mut message = insert().fetch_optional(&mut *tx).await?;
            if message.is_none() {
                begin_chat(&service, tx, path.chat, caller).await?;
                message = insert().fetch_optional(&mut *tx).await?;
            }
            if let Some(contact) = new.contact.filter(|_| message.is_some()) {
                is_with(&service, tx, path.chat, contact).await?;
            }
            Ok::<_, Problem>(message)
        })
        .await?;
    let done = Committed::some(written).ok_or_else(|| Problem::not_found("there is no such chat"))?;
    Ok(done.created(&format!("/api/v1/chats/{}/messages", path.chat)))
}

/// Says whom a chat is with.
///
/// # Errors
/// 422 where that is no contact of the chat's company.
async fn is_with(
    service: &Service,
    tx: &mut sqlx::PgConnection,
    chat: Uuid,
    contact: i64,
) -> Result<(), Problem> {
    // It stays until the end of the transaction. A chat that is with it already is not written.
    let sql = "with its as (select p.id from contacts p join chats c on c.company_id = p.company_id \
                 where c.id = $1 and p.id = $2 for key share of p), \
               said as (update chats set contact_id = $2 \
                 where id = $1 and contact_id is distinct from $2 and exists (select from its)) \
               select id from its";
    let query = service.database.write::<(i64,)>(sql).bind(chat).bind(contact);
    let its = query.fetch_optional(tx).await?;
    its.map(drop).ok_or_else(|| Problem::invalid("contact", "is no contact of the chat's company"))
}

/// Makes a chat, unless there is one: then it may be another's.
///
/// # Errors
/// 422 where the caller doesn't say for which company.
pub(super) async fn begin_chat(
    service: &Service,
    tx: &mut sqlx::PgConnection,
    chat: Uuid,
    caller: Caller,
) -> Result<(), Problem> {
    let sql = "insert into chats (id, company_id) values ($1, $2) on conflict (id) do nothing returning id";
    let query = service.database.write::<(Uuid,)>(sql).bind(chat).bind(caller.own_company()?);
    query.fetch_optional(tx).await?;
    Ok(())
}
