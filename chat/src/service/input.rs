//! What requests bring: paths, queries and bodies, each with a problem that names what is wrong with it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::path::ErrorKind;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use futures_util::StreamExt;
use hyper::body::Body as _;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::Service;
use super::access::{self, Caller};
use super::problem::{Kind, Problem};

/// Largest body of a request, save of imports.
pub(super) const MAX_BODY: usize = 1024 * 1024;
/// How long a body may take to come.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// The parameters of a path.
#[derive(Debug)]
pub(crate) struct PathParams<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for PathParams<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(PathRejection::FailedToDeserializePathParams(error)) => Err(match error.kind() {
                ErrorKind::ParseErrorAtKey { key, expected_type, .. } => {
                    Problem::bad(key, &format!("must be {}", called(expected_type)))
                }
                ErrorKind::DeserializeError { key, message, .. } => Problem::bad(key, message),
                ErrorKind::InvalidUtf8InPathParam { key } => Problem::bad(key, "is not UTF-8"),
                _ => Problem::new(Kind::BadRequest, "the path can't be read"),
            }),
            Err(_) => Err(Problem::new(Kind::BadRequest, "the path can't be read")),
        }
    }
}

fn called(expected: &str) -> &str {
    if expected == "i64" { "an integer" } else { expected }
}

/// The parameters of a query.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        let read = || serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
        if let Ok(value) = T::deserialize(read()) {
            return Ok(Self(value));
        }
        // Once more, to say which it is.
        serde_path_to_error::deserialize(read()).map(Self).map_err(|error| {
            let problem = of_field(Kind::BadRequest, "query", &error);
            if has_plus(query, &error.path().to_string()) { problem.and(PLUS) } else { problem }
        })
    }
}

/// Forms are encoded so, and queries like them.
const PLUS: &str = "a raw `+` in a query is a space: write it as `%2B`";

/// Whether a parameter's value has a plus that was not encoded.
fn has_plus(query: &str, name: &str) -> bool {
    query.split('&').any(|pair| match pair.split_once('=') {
        // Of what is there twice, or unknown, the name is not told.
        Some((given, value)) => value.contains('+') && (given == name || name == "."),
        None => false,
    })
}

/// A header that has one value.
///
/// # Errors
/// 400 where it is there twice: whichever was taken, the other would be forgotten.
pub(crate) fn only<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a HeaderValue>, Problem> {
    let mut given = headers.get_all(name).iter();
    let first = given.next();
    match given.next() {
        None => Ok(first),
        Some(_) => Err(Problem::bad(name.as_str(), "is there more than once, and may be only once")),
    }
}

/// A body of JSON: an object with the fields of `T`.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

/// A body of any JSON.
#[derive(Debug)]
pub(crate) struct Json(pub(crate) Box<RawValue>);

impl<T: DeserializeOwned> FromRequest<Arc<Service>> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, service: &Arc<Service>) -> Result<Self, Problem> {
        object(&counted(request, service).await?).map(Self)
    }
}

impl FromRequest<Arc<Service>> for Json {
    type Rejection = Problem;

    async fn from_request(request: Request, service: &Arc<Service>) -> Result<Self, Problem> {
        parse(&counted(request, service).await?).map(Self)
    }
}

/// What is large counts as several requests, before it is read: to read it and to refuse it then would cost as much.
async fn counted(request: Request, service: &Service) -> Result<Bytes, Problem> {
    let company = Caller::asking().and_then(Caller::charged);
    service.access.check_work(company, access::pieces(&request))?;
    json(request).await
}

/// Reads a body of JSON. Whoever calls this has counted it.
///
/// # Errors
/// 408, 413, 415, as they say.
pub(crate) async fn json(request: Request) -> Result<Bytes, Problem> {
    let essence = |given: &str| given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let given = only(request.headers(), &CONTENT_TYPE)?.and_then(|given| given.to_str().ok());
    match given.is_some_and(|given| essence(given) == "application/json") {
        true => bytes(request).await,
        false => Err(Problem::of(Kind::UnsupportedMediaType, "content-type", "must be application/json")),
    }
}

/// Reads an object. An array of the fields in their order is none, though serde would take it.
///
/// # Errors
/// Those of [`parse`].
pub(crate) fn object<T: DeserializeOwned>(json: &[u8]) -> Result<T, Problem> {
    if json.trim_ascii_start().starts_with(b"[") {
        parse::<IgnoredAny>(json)?;
        return Err(Problem::invalid("body", "must be an object"));
    }
    parse(json)
}

/// # Errors
/// 400 where it is no JSON, 422 where it is not what is wanted, with the path of the field.
pub(crate) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Problem> {
    let mut read = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut read).map_err(|error| {
        let kind = if error.inner().is_data() { Kind::Invalid } else { Kind::BadRequest };
        of_field(kind, "body", &error)
    })?;
    read.end().map_err(|error| Problem::bad("body", &error.to_string()))?;
    Ok(value)
}

fn of_field<E: std::fmt::Display>(kind: Kind, whole: &str, error: &serde_path_to_error::Error<E>) -> Problem {
    let wrong = error.inner().to_string();
    match error.path().to_string().as_str() {
        // What is unknown or missing is named in the message alone.
        "." | "?" => match wrong.split('`').nth(1).filter(|_| wrong.contains("field `")) {
            Some(field) => Problem::of(kind, field, &wrong),
            None => Problem::of(kind, whole, &wrong),
        },
        field => Problem::of(kind, field, &wrong),
    }
}

async fn bytes(request: Request) -> Result<Bytes, Problem> {
    let too_large = || Problem::of(Kind::TooLarge, "body", &format!("has more than {MAX_BODY} bytes"));
    if request.body().size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    let reading = async {
        let mut stream = request.into_body().into_data_stream();
        let mut body = Vec::new();
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|_gone| Problem::bad("body", "ended before it was complete"))?;
            if body.len() + piece.len() > MAX_BODY {
                return Err(too_large());
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.into())
    };
    match tokio::time::timeout(BODY_LIMIT, reading).await {
        Ok(read) => read,
        Err(_elapsed) => {
            Err(Problem::of(Kind::RequestTimeout, "body", &format!("did not come within {BODY_LIMIT:?}")))
        }
    }
}

/// For fields of a change, where `null` is another thing than nothing at all.
#[expect(clippy::option_option, reason = "absent, null, and a value are three things")]
pub(crate) fn nullable<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Text that people wrote: of `least..=most` characters, none of which is a control character other than `besides`.
pub(crate) fn text(field: &str, text: &str, most: usize, besides: &[char]) -> Result<(), Problem> {
    let characters = text.chars().count();
    if !(1..=most).contains(&characters) {
        return Err(Problem::invalid(field, &format!("must have 1 to {most} characters")));
    }
    if text.chars().any(|c| c.is_control() && !besides.contains(&c)) {
        return Err(Problem::invalid(field, "must not have control characters"));
    }
    Ok(())
}
