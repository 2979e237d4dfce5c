//! What a response says of its consistency, and what a request may ask for.
//!
//! Writes and reads answer with `perto-token`; a read that brings it as `perto-at-least` is no older, on any instance. A
//! read says where it came from (`perto-tier`) and how far it can be trusted (`perto-freshness`), and has an `ETag`.

use std::fmt::{self, Arguments, Write as _};
use std::sync::OnceLock;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::FromRequestParts;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use perto::postgres::Written;
use perto::{Cache, Freshness, Key, Read, ReadOptions, StaleCause, Tier, TierMode, Token, Value};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use utoipa::IntoParams;

use super::input;
use super::problem::Problem;

mod tags;

static AT_LEAST: HeaderName = HeaderName::from_static("perto-at-least");
static READ: HeaderName = HeaderName::from_static("perto-read");
/// As long as the longest bound.
const MAX_WITHIN_MS: u32 = 3_600_000;
const TIER: HeaderName = HeaderName::from_static("perto-tier");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const FRESHNESS: HeaderName = HeaderName::from_static("perto-freshness");
const TOKEN: HeaderName = HeaderName::from_static("perto-token");
const PRIVATE: HeaderValue = HeaderValue::from_static("private, no-cache");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What a read may be asked for by headers.
#[derive(Debug)]
pub(crate) struct Preconditions {
    at_least: Option<Token>,
    /// None at all for the latest.
    within: Option<Duration>,
    never_stale: bool,
    /// As they came, line by line.
    if_none_match: Vec<HeaderValue>,
}

/// As documented.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it says in the API's description what `Preconditions` reads")]
pub(crate) struct ReadHeaders {
    /// The `perto-token` of an earlier answer: this one is no older.
    #[param(
        rename = "perto-at-least",
        pattern = "^([0-9a-f]{1,16}-r?[0-9a-f]{1,16})?$",
        required = false,
        nullable = false
    )]
    at_least: Option<String>,
    /// `latest`: the answer misses nothing that was visible when the request came. `within=100ms`: nothing that was visible
    /// 100 ms before. `fresh`: nothing stale, where the service is set up to serve that.
    #[param(
        rename = "perto-read",
        pattern = "^(latest|fresh|within=([0-9]{1,6}|[12][0-9]{6}|3[0-5][0-9]{5}|3600000)ms)$",
        required = false,
        nullable = false,
        example = "within=100ms"
    )]
    read: Option<String>,
    /// `ETag`s that the client has: where the answer's is among them, it is `304` without a body.
    #[param(rename = "if-none-match", required = false, nullable = false)]
    if_none_match: Option<String>,
}

impl Preconditions {
    pub(crate) fn options(&self) -> ReadOptions {
        let options = match (self.within, self.never_stale) {
            (Some(within), _) => ReadOptions::within(within),
            (None, true) => ReadOptions::never_stale(),
            (None, false) => ReadOptions::default(),
        };
        self.at_least.map_or(options, |token| options.and_at_least(token))
    }

    fn has(&self, tag: &HeaderValue) -> bool {
        self.if_none_match.iter().any(|given| given == tag || tags::names(given.as_bytes(), tag.as_bytes()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Preconditions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let at_least = match input::only(&parts.headers, &AT_LEAST)?.filter(|given| !given.is_empty()) {
            None => None,
            Some(given) => match given.to_str().ok().and_then(|text| text.parse().ok()) {
                Some(token) => Some(token),
                None => return Err(Problem::bad(AT_LEAST.as_str(), "is not a token of this service")),
            },
        };
        let asked = input::only(&parts.headers, &READ)?;
        let never_stale = asked.is_some_and(|given| given == "fresh");
        let within = match asked {
            None => None,
            Some(_) if never_stale => None,
            Some(given) => match given.to_str().ok().and_then(within) {
                Some(within) => Some(within),
                None => {
                    return Err(Problem::bad(
                        READ.as_str(),
                        "must be `latest`, `fresh`, or like `within=100ms`: at most 3600000ms",
                    ));
                }
            },
        };
        let if_none_match = parts.headers.get_all(IF_NONE_MATCH).iter().cloned().collect();
        Ok(Self { at_least, within, never_stale, if_none_match })
    }
}

/// What `perto-read` asks for: no time at all is the latest.
fn within(text: &str) -> Option<Duration> {
    if text == "latest" {
        return Some(Duration::ZERO);
    }
    let ms = text.strip_prefix("within=")?.strip_suffix("ms")?;
    let ms = ms.bytes().all(|byte| byte.is_ascii_digit()).then(|| ms.parse::<u32>().ok())??;
    (ms <= MAX_WITHIN_MS).then(|| Duration::from_millis(ms.into()))
}

/// A row as it is cached: with the body that its answers have, made once for as long as it is in L1.
#[derive(Debug)]
pub(crate) struct Row<T> {
    pub(crate) row: T,
    rendered: OnceLock<Rendered>,
}

/// A body and its tag.
#[derive(Debug, Clone)]
pub(crate) struct Rendered {
    pub(crate) body: Bytes,
    pub(crate) tag: HeaderValue,
}

impl Rendered {
    /// JSON, with a tag of its own.
    pub(crate) fn new(json: Vec<u8>) -> Self {
        Self { tag: tag(&digest(&json), format_args!("")), body: json.into() }
    }
}

impl<T> From<T> for Row<T> {
    fn from(row: T) -> Self {
        Self { row, rendered: OnceLock::new() }
    }
}

impl<T: Serialize> Row<T> {
    fn rendered(&self) -> &Rendered {
        self.rendered.get_or_init(|| Rendered::new(serde_json::to_vec(&self.row).unwrap_or_default()))
    }
}

impl<T: Serialize> Serialize for Row<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.row.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Row<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::from)
    }
}

/// The same bytes have the same one on every instance.
pub(crate) fn digest(bytes: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(bytes)[..16]);
    short
}

pub(crate) fn tag(digest: &[u8; 16], of: Arguments<'_>) -> HeaderValue {
    let mut tag = Short { bytes: [0; _], length: 0 };
    let mut write = || {
        tag.write_str("\"")?;
        tag.hex(digest)?;
        tag.write_fmt(of)?;
        tag.write_str("\"")
    };
    write().ok().and_then(|()| tag.header()).unwrap_or(HeaderValue::from_static("\"\""))
}

/// A header of few bytes, without a text in between.
struct Short {
    bytes: [u8; 128],
    length: usize,
}

impl Short {
    fn add(&mut self, bytes: &[u8]) -> fmt::Result {
        let end = self.length + bytes.len();
        self.bytes.get_mut(self.length..end).ok_or(fmt::Error)?.copy_from_slice(bytes);
        self.length = end;
        Ok(())
    }

    /// The formatter of a `u128` takes as long as all else of a tag.
    fn hex(&mut self, digest: &[u8; 16]) -> fmt::Result {
        const DIGITS: [u8; 16] = *b"0123456789abcdef";
        let mut text = [0; 32];
        for (two, byte) in text.chunks_exact_mut(2).zip(digest) {
            two.copy_from_slice(&[byte >> 4, byte & 15].map(|half| DIGITS[usize::from(half)]));
        }
        self.add(&text)
    }

    fn header(&self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(&self.bytes[..self.length]).ok()
    }
}

impl fmt::Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.add(text.as_bytes())
    }
}

/// A value that was read, on its way out.
#[derive(Debug)]
pub(crate) struct Answer {
    parts: Response,
}

impl Answer {
    /// A row.
    pub(crate) fn row<T: Serialize>(read: &Served<Row<T>>, wanted: &Preconditions) -> Self {
        Self::rendered(read.quality, wanted, read.value().rendered())
    }

    /// A body with its tag; the tag alone where the client has the body.
    pub(crate) fn rendered(quality: Quality, wanted: &Preconditions, rendered: &Rendered) -> Self {
        let mut response = if wanted.has(&rendered.tag) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else {
            let mut response = Response::new(rendered.body.clone().into());
            response.headers_mut().reserve(7);
            response.headers_mut().insert(CONTENT_TYPE, JSON);
            response
        };
        let headers = response.headers_mut();
        consistency(headers, quality.freshness, quality.tier, quality.modes);
        put_token(headers, quality.token);
        headers.insert(ETAG, rendered.tag.clone());
        Self { parts: response }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        self.parts
    }
}

/// What a read found.
#[derive(Debug)]
pub(crate) struct Served<V> {
    /// Of a value that is there.
    read: Read<V>,
    pub(crate) quality: Quality,
}

/// How far an answer can be trusted, and where it came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quality {
    pub(crate) freshness: Freshness,
    pub(crate) tier: Tier,
    /// What a later answer must contain to be no older. None where nobody knows.
    pub(crate) token: Option<Token>,
    pub(crate) modes: Modes,
}

/// What is switched of the cache that was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Modes([TierMode; 2]);

impl Modes {
    pub(crate) fn of<K: Key, V: Value>(cache: &Cache<K, V>) -> Self {
        Self([Tier::Local, Tier::Remote].map(|tier| cache.mode(tier)))
    }

    /// Says so in a `cache-status`, behind what it says in detail already.
    fn told_in(self, status: HeaderValue) -> HeaderValue {
        if self.0 == [TierMode::On; 2] {
            return status;
        }
        let text = status.to_str().unwrap_or_default();
        let (head, detail) = text.split_once("; detail=").map_or((text, None), |(head, it)| (head, Some(it)));
        let head =
            if self.0 == [TierMode::Off; 2] { head.replace("uri-miss", "bypass") } else { head.to_owned() };
        let switched = ["l1", "l2"].into_iter().zip(self.0).filter(|(_, mode)| *mode != TierMode::On);
        let switched = switched.map(|(tier, mode)| format!("{tier} {mode}"));
        let details: Vec<String> = detail.map(str::to_owned).into_iter().chain(switched).collect();
        let told = HeaderValue::try_from(format!("{head}; detail=\"{}\"", details.join(", ")));
        told.unwrap_or(status)
    }
}

impl<V> Served<V> {
    /// A 404 where there is no such row, or `theirs` says that it is another's: nobody is told which. So it has no token
    /// either, which would change with another's row and never with none.
    pub(crate) fn new<K: Key>(
        cache: &Cache<K, V>,
        read: Read<V>,
        what: &str,
        theirs: impl FnOnce(&V) -> bool,
    ) -> Result<Self, Problem>
    where
        V: Value,
    {
        match read.value() {
            Some(value) if theirs(value) => {
                let (freshness, tier, token) = (read.freshness, read.tier, read.token());
                Ok(Self { read, quality: Quality { freshness, tier, token, modes: Modes::of(cache) } })
            }
            _ => Err(Problem::not_found(format!("there is no such {what}"))),
        }
    }
}

impl<V> Served<V> {
    pub(crate) fn value(&self) -> &V {
        match self.read.value() {
            Some(value) => value,
            None => unreachable!("`new` makes none without a value"),
        }
    }

    /// An answer that rests on another read too, which had this token.
    pub(crate) fn and(mut self, token: Option<Token>) -> Self {
        self.quality.token = Token::of_all([self.quality.token, token]);
        self
    }

    /// As good as the worse of the two.
    pub(crate) fn no_fresher_than(mut self, other: Freshness) -> Self {
        self.quality.freshness = worse(self.quality.freshness, other);
        self
    }
}

/// Of two, the one that promises less.
pub(crate) fn worse(one: Freshness, other: Freshness) -> Freshness {
    if one == Freshness::Fresh { other } else { one }
}

/// RFC 9211: whether a tier had it, which, and how long it is stale.
fn cache_status(freshness: Freshness, tier: Tier) -> HeaderValue {
    let stale_by_choice = |why: &str, since: Duration| {
        let status = format!("perto; hit; ttl=-{}; detail={why}", since.as_millis().div_ceil(1_000));
        HeaderValue::try_from(status).unwrap_or(HeaderValue::from_static("perto; hit"))
    };
    let plain = match (freshness, tier) {
        (Freshness::Stale(StaleCause::Invalidated { since }), _) => {
            return stale_by_choice("invalidated", since);
        }
        (Freshness::Stale(StaleCause::Expired { since }), _) => return stale_by_choice("expired", since),
        (Freshness::Unverified { .. }, Tier::Local | Tier::Remote) => "perto; hit; detail=unverified",
        (Freshness::Stale(_), Tier::Load) => "perto; fwd=uri-miss; detail=replica",
        (_, Tier::Local) => "perto; hit; detail=l1",
        (_, Tier::Remote) => "perto; hit; detail=l2",
        (_, Tier::Load) => "perto; fwd=uri-miss",
    };
    HeaderValue::from_static(plain)
}

fn consistency(headers: &mut HeaderMap, freshness: Freshness, tier: Tier, modes: Modes) {
    let (of, from) = (freshness, tier);
    let tier = match tier {
        Tier::Local => "l1",
        Tier::Remote => "l2",
        Tier::Load => "load",
    };
    let freshness = match freshness {
        Freshness::Fresh => "fresh",
        Freshness::Unverified { .. } => "unverified",
        _ => "stale",
    };
    headers.insert(CACHE_STATUS, modes.told_in(cache_status(of, from)));
    headers.insert(TIER, HeaderValue::from_static(tier));
    headers.insert(FRESHNESS, HeaderValue::from_static(freshness));
    headers.insert(CACHE_CONTROL, PRIVATE);
}

/// A value that was composed of others: as good as the worst of them.
#[derive(Debug)]
pub(crate) struct Composed<T> {
    pub(crate) value: T,
    pub(crate) freshness: Freshness,
    pub(crate) tier: Tier,
    pub(crate) token: Option<Token>,
    pub(crate) modes: Modes,
}

impl<T> Composed<T> {
    pub(crate) fn map<U>(self, of: impl FnOnce(T) -> U) -> Composed<U> {
        let Self { value, freshness, tier, token, modes } = self;
        Composed { value: of(value), freshness, tier, token, modes }
    }
}

pub(crate) fn composed<T: Serialize>(read: &Composed<T>) -> Response {
    let mut response = Json(&read.value).into_response();
    consistency(response.headers_mut(), read.freshness, read.tier, read.modes);
    put_token(response.headers_mut(), read.token);
    response
}

/// A write that is committed.
#[derive(Debug)]
pub(crate) struct Committed<V>(pub(crate) Written<V>);

impl<V> Committed<V> {
    /// None where the write found no row.
    pub(crate) fn some(written: Written<Option<V>>) -> Option<Self> {
        let token = written.token;
        written.value.map(|value| Self(Written { value, token }))
    }

    /// Made anew, at `location`.
    pub(crate) fn created(self, location: &str) -> Response
    where
        V: Serialize,
    {
        let mut response = (StatusCode::CREATED, self).into_response();
        if let Ok(location) = location.parse() {
            response.headers_mut().insert(axum::http::header::LOCATION, location);
        }
        response
    }
}

impl<V: Serialize> IntoResponse for Committed<V> {
    fn into_response(self) -> Response {
        let mut response = Json(self.0.value).into_response();
        written(response.headers_mut(), self.0.token);
        response
    }
}

/// What the answer to a write says.
pub(crate) fn written(headers: &mut HeaderMap, token: Option<Token>) {
    put_token(headers, token);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
}

fn put_token(headers: &mut HeaderMap, token: Option<Token>) {
    let Some(token) = token else { return };
    let mut text = Short { bytes: [0; _], length: 0 };
    if let Some(token) = write!(text, "{token}").ok().and_then(|()| text.header()) {
        headers.insert(TOKEN, token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_the_latest_or_a_number_of_milliseconds_up_to_the_longest_bound() {
        let ms = |ms| Some(Duration::from_millis(ms));
        for (text, wanted) in [
            ("latest", ms(0)),
            ("within=0ms", ms(0)),
            ("within=100ms", ms(100)),
            ("within=3600000ms", ms(3_600_000)),
        ] {
            assert_eq!(within(text), wanted, "{text}");
        }
        for text in [
            "",
            "Latest",
            "latest ",
            "100ms",
            "within=",
            "within=ms",
            "within=100",
            "within=+1ms",
            "within=-1ms",
            "within=1s",
            "within=0.5ms",
            "within=100 ms",
            "within=3600001ms",
            "within=4294967296ms",
            "within=\u{664}ms",
        ] {
            assert_eq!(within(text), None, "{text}");
        }
    }
}
