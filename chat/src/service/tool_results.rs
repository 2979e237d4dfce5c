//! Results of AI tools: the last one by chat and tool, durable in Postgres until it expires.
//!
//! What has expired is cached like anything else and refused when it is asked for: a loader that read the clock would not
//! say the same twice.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use chrono::{DateTime, Utc};
use perto::{Cache, CacheBuilder, Load, Loaded, StartError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::FromRow;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::Service;
use super::access::Caller;
use super::answer::{Answer, Committed, Preconditions, ReadHeaders, Row, Served};
use super::caches::{NotAKey, share_of};
use super::database::Database;
use super::fair;
use super::input::{self, PathParams};
use super::messages::begin_chat;
use super::problem::Problem;

pub(crate) const CACHE: &str = "tool_result";

pub(crate) type ToolResults = Cache<ChatTool, Row<ToolResult>>;

/// Largest result, as JSON.
const MAX_RESULT: usize = 256 * 1024;

/// Deepest nesting of a result: whoever reads it has a stack.
const MAX_DEPTH: usize = 128;

/// A tool of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ChatTool {
    chat: Uuid,
    tool: String,
}

impl fmt::Display for ChatTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.chat, self.tool)
    }
}

impl FromStr for ChatTool {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let (chat, tool) = text.split_once(':').ok_or(NotAKey)?;
        check(tool).map_err(|_no_tool| NotAKey)?;
        Ok(Self { chat: chat.parse().map_err(|_no_chat| NotAKey)?, tool: tool.to_owned() })
    }
}

/// A tool's last result, as it is cached.
#[derive(Debug, Clone, Serialize, Deserialize, FromRow)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ToolResult {
    #[sqlx(rename = "chat_id")]
    chat: Uuid,
    tool: String,
    result: Json,
    stored_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    #[serde(rename = "company")]
    company_id: i64,
}

/// A tool's last result.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct StoredToolResult {
    chat: Uuid,
    tool: String,
    /// Any JSON.
    result: serde_json::Value,
    stored_at: DateTime<Utc>,
    /// When it is no longer the last result, but none.
    expires_at: DateTime<Utc>,
    company: i64,
}

/// Text that is JSON: kept as it came, and written into answers as it is.
#[derive(Debug, Clone)]
pub(crate) struct Json(Box<RawValue>);

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct ToolPath {
    /// Chosen by the client.
    chat: Uuid,
    #[param(pattern = "^[A-Za-z0-9_.-]{1,64}$")]
    tool: String,
}

pub(super) fn cache(
    settings: CacheBuilder<ChatTool, Row<ToolResult>>,
    database: Database,
) -> Result<ToolResults, StartError> {
    settings
        .tables(["tool_results"])
        .groups(|_, row| share_of(row.map(|row| row.row.company_id)))
        .loader(move |load: Load<ChatTool>| load_results(database.clone(), load))
}

async fn load_results(
    database: Database,
    load: Load<ChatTool>,
) -> Result<Loaded<ChatTool, Row<ToolResult>>, sqlx::Error> {
    let (chats, tools): (Vec<Uuid>, Vec<String>) =
        load.keys.into_iter().map(|key| (key.chat, key.tool)).unzip();
    let sql = "select r.chat_id, r.tool, r.result::text as result, r.stored_at, r.expires_at, c.company_id \
               from unnest($1::uuid[], $2::text[]) k(chat, tool) \
               join tool_results r on r.chat_id = k.chat and r.tool = k.tool join chats c on c.id = r.chat_id";
    let rows = database.read::<ToolResult>(sql).bind(chats).bind(tools).fetch(&database.pool).await?;
    let now = Utc::now();
    Ok(rows.rows.into_iter().fold(Loaded::new(rows.stamp), |loaded, found| {
        let key = ChatTool { chat: found.chat, tool: found.tool.clone() };
        // What has expired lives a moment longer, as what it is.
        let left = (found.expires_at - now).to_std().unwrap_or_default().max(Duration::from_secs(1));
        loaded.with_ttl(key, Row::from(found), left)
    }))
}

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(read, store))
}

/// A tool's last result
#[utoipa::path(get, path = "/api/v1/chats/{chat}/tool-results/{tool}", tag = "chats", params(ToolPath, ReadHeaders),
    responses((status = 200, body = StoredToolResult)))]
async fn read(
    State(service): State<Arc<Service>>,
    caller: Caller,
    PathParams(path): PathParams<ToolPath>,
    wanted: Preconditions,
) -> Result<Answer, Problem> {
    check(&path.tool)?;
    let key = ChatTool { chat: path.chat, tool: path.tool };
    let read = fair::read(&service.caches.tool_results, &key, wanted.options()).await?;
    let lives =
        |found: &Row<ToolResult>| caller.may(found.row.company_id) && found.row.expires_at > Utc::now();
    let found = Served::new(&service.caches.tool_results, read, "tool result", lives)?;
    Ok(Answer::row(&found, &wanted))
}

/// Stores a tool's result
///
/// The body is the result: any JSON of at most 256 KiB.
#[utoipa::path(put, path = "/api/v1/chats/{chat}/tool-results/{tool}", tag = "chats", params(ToolPath),
    request_body = serde_json::Value, responses((status = 200, body = StoredToolResult)))]
async fn store(
    State(service): State<Arc<Service>>,
    caller: Caller,
    PathParams(path): PathParams<ToolPath>,
    input::Json(result): input::Json,
) -> Result<Committed<ToolResult>, Problem> {
    check(&path.tool)?;
    if result.get().len() > MAX_RESULT {
        return Err(Problem::invalid("body", &format!("must have at most {MAX_RESULT} bytes")));
    }
    if deeper_than(result.get(), MAX_DEPTH) {
        return Err(Problem::invalid("body", &format!("must not be nested deeper than {MAX_DEPTH}")));
    }
    let sql = "insert into tool_results (chat_id, tool, result, expires_at) \
               select id, $3, $4::json, clock_timestamp() + make_interval(secs => $5) from chats \
               where id = $1 and ($2::bigint is null or company_id = $2) \
               on conflict (chat_id, tool) do update set result = excluded.result, \
                 stored_at = clock_timestamp(), expires_at = clock_timestamp() + make_interval(secs => $5) \
               returning chat_id, tool, result::text as result, stored_at, expires_at, \
                 (select company_id from chats where id = chat_id) as company_id";
    let life = service.settings.ttls.tool_result.as_secs_f64();
    let written = service
        .write(async |tx| {
            let insert = || {
                let query = service.database.write::<ToolResult>(sql).bind(path.chat).bind(caller.company());
                query.bind(&path.tool).bind(result.get()).bind(life)
            };
            if let Some(stored) = insert().fetch_optional(&mut *tx).await? {
                return Ok(Some(stored));
            }
            begin_chat(&service, tx, path.chat, caller).await?;
            Ok::<_, Problem>(insert().fetch_optional(&mut *tx).await?)
        })
        .await?;
    Committed::some(written).ok_or_else(|| Problem::not_found("there is no such chat"))
}

fn check(tool: &str) -> Result<(), Problem> {
    let plain = tool.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    match plain && (1..=64).contains(&tool.len()) {
        true => Ok(()),
        false => Err(Problem::bad("tool", "must be 1 to 64 letters, digits, _, . or -")),
    }
}

/// Whether JSON, which this must be, is nested deeper.
fn deeper_than(json: &str, most: usize) -> bool {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    json.bytes().any(|byte| {
        match (in_text, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_text = !in_text,
            (false, b'[' | b'{') => depth += 1,
            (false, b']' | b'}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > most
    })
}

impl Serialize for Json {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Of the two formats only JSON is for people.
        match serializer.is_human_readable() {
            true => self.0.serialize(serializer),
            false => self.0.get().serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        RawValue::from_string(text).map(Self).map_err(serde::de::Error::custom)
    }
}

impl sqlx::Type<sqlx::Postgres> for Json {
    fn type_info() -> sqlx::postgres::PgTypeInfo {
        <String as sqlx::Type<sqlx::Postgres>>::type_info()
    }
}

impl<'r> sqlx::Decode<'r, sqlx::Postgres> for Json {
    fn decode(value: sqlx::postgres::PgValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
        Ok(Self(RawValue::from_string(String::decode(value)?)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_brackets_outside_of_texts_are_depth() {
        for (json, depth) in
            [("1", 0), ("[]", 1), (r#"{"a":[{"b":"[[[\\\"[["}]}"#, 3), ("[[],[[]]]", 3), (r#""\"[""#, 0)]
        {
            assert!(!deeper_than(json, depth), "{json}");
            assert!(depth == 0 || deeper_than(json, depth - 1), "{json}");
        }
    }
}
