//! Errors as [problem+json](https://www.rfc-editor.org/rfc/rfc9457), made in one place.
//!
//! Types are stable: clients may compare them. Internal causes are logged, never sent.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::limits::Limit;

/// What a client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    kind: Kind,
    detail: String,
    field: Option<String>,
    retry_after: Option<Duration>,
}

/// Kinds of problems, by what a client can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    Conflict,
    TooLarge,
    UnsupportedMediaType,
    Invalid,
    /// A limit refuses, and has a type of its own.
    Limit(Limit),
    Internal,
    Unavailable,
    Timeout,
}

impl Kind {
    const fn parts(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::BadRequest => ("bad-request", StatusCode::BAD_REQUEST, "The request can't be read"),
            Self::Unauthorized => ("unauthorized", StatusCode::UNAUTHORIZED, "A key is needed"),
            Self::Forbidden => ("forbidden", StatusCode::FORBIDDEN, "This key is not enough"),
            Self::NotFound => ("not-found", StatusCode::NOT_FOUND, "There is no such thing"),
            Self::MethodNotAllowed => {
                ("method-not-allowed", StatusCode::METHOD_NOT_ALLOWED, "This route has no such method")
            }
            Self::RequestTimeout => {
                ("request-timeout", StatusCode::REQUEST_TIMEOUT, "The request came too slowly")
            }
            Self::Conflict => ("conflict", StatusCode::CONFLICT, "Something else is in the way"),
            Self::TooLarge => ("too-large", StatusCode::PAYLOAD_TOO_LARGE, "The body is too large"),
            Self::UnsupportedMediaType => (
                "unsupported-media-type",
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "This type of body is not understood",
            ),
            Self::Invalid => ("invalid", StatusCode::UNPROCESSABLE_ENTITY, "A value is not acceptable"),
            Self::Limit(limit) => limit.parts(),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "Something is wrong here"),
            Self::Unavailable => ("unavailable", StatusCode::SERVICE_UNAVAILABLE, "Not at the moment"),
            Self::Timeout => ("timeout", StatusCode::GATEWAY_TIMEOUT, "It took too long"),
        }
    }
}

/// As it is sent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct Document {
    /// What kind of problem, for programs: `urn:perto:problem:not-found` and the like.
    #[schema(pattern = "^urn:perto:problem:[a-z-]+$")]
    r#type: String,
    /// The same for people.
    title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What to change.
    detail: String,
    /// The field, parameter or header that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    field: Option<String>,
}

impl Problem {
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), field: None, retry_after: None }
    }

    /// About a field, a parameter or a header: `detail` begins with its name.
    pub(crate) fn of(kind: Kind, field: &str, wrong: &str) -> Self {
        Self { field: Some(field.to_owned()), ..Self::new(kind, format!("{field}: {wrong}")) }
    }

    /// The field is one of a part of the whole.
    pub(crate) fn inside(self, part: &str) -> Self {
        let field = match self.field.as_deref() {
            None | Some("body") => part.to_owned(),
            Some(field) => format!("{part}.{field}"),
        };
        Self { detail: format!("{part}: {}", self.detail), field: Some(field), ..self }
    }

    /// With one more thing to know.
    pub(crate) fn and(mut self, more: &str) -> Self {
        self.detail = format!("{}; {more}", self.detail);
        self
    }

    pub(crate) fn bad(field: &str, wrong: &str) -> Self {
        Self::of(Kind::BadRequest, field, wrong)
    }

    pub(crate) fn invalid(field: &str, wrong: &str) -> Self {
        Self::of(Kind::Invalid, field, wrong)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, detail)
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, detail).retry_after(Duration::from_secs(1))
    }

    /// A limit refuses for now.
    pub(crate) fn limit(limit: Limit, detail: impl Into<String>) -> Self {
        Self::new(Kind::Limit(limit), detail).retry_after(Duration::from_secs(1))
    }

    pub(crate) fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error, "request failed");
        Self::new(Kind::Internal, "it has been logged")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (name, status, title) = self.kind.parts();
        let document = Document {
            r#type: format!("urn:perto:problem:{name}"),
            title,
            status: status.as_u16(),
            detail: self.detail,
            field: self.field,
        };
        let mut response = (status, Json(document)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(after) = self.retry_after {
            headers.insert(
                header::RETRY_AFTER,
                after
                    .as_secs_f64()
                    .ceil()
                    .max(1.0)
                    .to_string()
                    .parse()
                    .unwrap_or(HeaderValue::from_static("1")),
            );
        }
        if self.kind == Kind::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Kind::Limit(limit) = self.kind {
            // Whoever sends it counts it.
            response.extensions_mut().insert(limit);
        }
        response
    }
}

impl From<perto::Error> for Problem {
    fn from(error: perto::Error) -> Self {
        match &error {
            perto::Error::TokenAhead => Self::bad("perto-at-least", "the token is ahead of the database"),
            perto::Error::KeyTooLong { .. } => Self::bad("key", "is longer than any key"),
            error if error.is_retryable() => {
                tracing::warn!(error = error as &dyn std::error::Error, "read failed");
                Self::unavailable("the database can't be read at the moment")
            }
            perto::Error::Closed => Self::unavailable("this instance is being shut down"),
            error => Self::internal(error),
        }
    }
}

impl From<perto::SwitchError> for Problem {
    fn from(error: perto::SwitchError) -> Self {
        match error {
            perto::SwitchError::UnknownCache { .. } => Self::not_found(error.to_string()),
            perto::SwitchError::Senseless(why) => Self::new(Kind::Invalid, why),
            perto::SwitchError::Closed => Self::unavailable("this instance is being shut down"),
            error => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a switch was not recorded");
                Self::unavailable("the switch could not be recorded: the log has why")
            }
        }
    }
}

impl From<perto::InvalidateError> for Problem {
    fn from(error: perto::InvalidateError) -> Self {
        match &error {
            perto::InvalidateError::KeyTooLong { .. } => Self::bad("key", "is longer than any key"),
            error => {
                tracing::warn!(error = error as &dyn std::error::Error, "invalidation failed");
                Self::unavailable("the invalidation could not be recorded; nothing is promised")
            }
        }
    }
}

impl From<super::rules::Flaw> for Problem {
    fn from(flaw: super::rules::Flaw) -> Self {
        Self::invalid(flaw.field, flaw.wrong)
    }
}

/// Constraints that a write may run into, and what to tell of them.
const CONSTRAINTS: [(&str, Kind, &str, &str); 8] = [
    (
        "users_company_id_folded_email_key",
        Kind::Conflict,
        "email",
        "another user of this company has it; upper and lower case are the same",
    ),
    ("users_company_id_email_key", Kind::Conflict, "email", "another user of this company has it"),
    ("contacts_company_id_phone_key", Kind::Conflict, "phone", "another contact of this company has it"),
    ("users_company_id_fkey", Kind::NotFound, "company", "there is no such company"),
    ("contacts_company_id_fkey", Kind::NotFound, "company", "there is no such company"),
    ("chats_company_id_fkey", Kind::NotFound, "company", "there is no such company"),
    // It goes with its company, between the look and the write.
    ("messages_chat_id_fkey", Kind::NotFound, "chat", "there is no such chat"),
    ("tool_results_chat_id_fkey", Kind::NotFound, "chat", "there is no such chat"),
];

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        let refused = error.as_database_error();
        let constraint = refused.and_then(sqlx::error::DatabaseError::constraint);
        if let Some((_, kind, field, wrong)) = CONSTRAINTS.iter().find(|(name, ..)| constraint == Some(name))
        {
            return Self::of(*kind, field, wrong);
        }
        let code = refused.and_then(|refused| refused.code()).map(|code| code.into_owned());
        match (&error, code.as_deref()) {
            // Nothing answers, no connection is left, a row is locked, a statement took too long, the server ends.
            (sqlx::Error::PoolTimedOut | sqlx::Error::Io(_) | sqlx::Error::PoolClosed, _)
            | (
                _,
                Some(
                    "25P03" | "53300" | "55P03" | "57014" | "57P01" | "57P02" | "57P03" | "40001" | "40P01"
                    | "25006",
                ),
            ) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "write failed");
                Self::unavailable("the database can't be written at the moment")
            }
            _ => Self::internal(&error),
        }
    }
}
