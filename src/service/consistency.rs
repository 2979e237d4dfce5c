//! What a response says of its consistency, and what a request may ask for.
//!
//! A write answers with `perto-token`; a read that brings it as `perto-at-least` sees the write, on any instance. A
//! read says where it came from (`perto-tier`) and how far it can be trusted (`perto-freshness`).

use std::sync::Arc;

use axum::Json;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use perto::postgres::Written;
use perto::{Freshness, Read, ReadOptions, Tier};
use serde::Serialize;

use super::problem::Problem;

/// Reads `perto-at-least`.
pub(super) fn options(headers: &HeaderMap) -> Result<ReadOptions, Problem> {
    let Some(header) = headers.get("perto-at-least") else { return Ok(ReadOptions::default()) };
    let token = header.to_str().ok().and_then(|text| text.parse().ok());
    token
        .map(ReadOptions::at_least)
        .ok_or_else(|| Problem::bad_request("perto-at-least: not a token of this service"))
}

/// A value that was read.
#[derive(Debug)]
pub(super) struct Answer<V> {
    value: Arc<V>,
    freshness: Freshness,
    tier: Tier,
}

impl<V> Answer<V> {
    /// None where there is no such row.
    pub(super) fn new(read: Read<V>) -> Option<Self> {
        let (freshness, tier) = (read.freshness, read.tier);
        read.value.map(|value| Self { value, freshness, tier })
    }
}

impl<V: Serialize> IntoResponse for Answer<V> {
    fn into_response(self) -> Response {
        let tier = match self.tier {
            Tier::Local => "l1",
            Tier::Remote => "l2",
            Tier::Load => "load",
        };
        let freshness = match self.freshness {
            Freshness::Fresh => "fresh",
            Freshness::Unverified { .. } => "unverified",
            _ => "stale",
        };
        let headers = [("perto-tier", tier), ("perto-freshness", freshness), ("cache-control", "private")];
        (headers, Json(&*self.value)).into_response()
    }
}

/// A write that is committed.
#[derive(Debug)]
pub(super) struct Done<V>(pub(super) Written<V>);

impl<V> Done<V> {
    /// None where the write found no row.
    pub(super) fn some(written: Written<Option<V>>) -> Option<Self> {
        let token = written.token;
        written.value.map(|value| Self(Written { value, token }))
    }
}

impl<V: Serialize> IntoResponse for Done<V> {
    fn into_response(self) -> Response {
        let token = self.0.token.map(|token| [("perto-token", token.to_string())]);
        (token.into_iter().flatten().collect::<Headers>(), Json(self.0.value)).into_response()
    }
}

#[derive(Default)]
struct Headers(HeaderMap);

impl FromIterator<(&'static str, String)> for Headers {
    fn from_iter<I: IntoIterator<Item = (&'static str, String)>>(headers: I) -> Self {
        let valid = |(name, value): (&'static str, String)| Some((name.parse().ok()?, value.parse().ok()?));
        Self(headers.into_iter().filter_map(valid).collect())
    }
}

impl axum::response::IntoResponseParts for Headers {
    type Error = std::convert::Infallible;

    fn into_response_parts(
        self,
        mut parts: axum::response::ResponseParts,
    ) -> Result<axum::response::ResponseParts, Self::Error> {
        parts.headers_mut().extend(self.0);
        Ok(parts)
    }
}
