//! Who asks: every request under `/api/v1` names a tenant by its API key, or is an admin's.
//!
//! Without an admin key and without any API key the service is open, and listens on loopback only. An admin, and anybody
//! where it is open, may say `perto-company` to act for one company.

use std::num::NonZeroU32;
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequestParts, Request};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::Service;
use super::keys::{self, KeyHash};
use super::listen;
use super::problem::{Kind, Problem};

const COMPANY: &str = "perto-company";
/// Keys that L1 doesn't have, looked up a second: guessing must not become work for Postgres.
const UNKNOWN_KEYS: NonZeroU32 = NonZeroU32::new(200).unwrap();

/// Who may do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    admin: bool,
    company: Option<i64>,
}

impl Caller {
    /// Whether what belongs to this company is there for this caller.
    pub(crate) fn may(self, company: i64) -> bool {
        self.company.is_none_or(|own| own == company)
    }

    /// The company for which something is made, where the request doesn't say it otherwise.
    pub(crate) fn company(self) -> Option<i64> {
        self.company
    }

    /// # Errors
    /// 422 where an admin doesn't say for whom.
    pub(crate) fn own_company(self) -> Result<i64, Problem> {
        self.company.ok_or_else(|| {
            Problem::invalid(COMPANY, "this header must say for which company, since the key doesn't")
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts
            .extensions
            .get::<Self>()
            .copied()
            .ok_or_else(|| Problem::new(Kind::Unauthorized, "no key was checked"))
    }
}

/// A caller who may administer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admin;

impl<S: Send + Sync> FromRequestParts<S> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Caller::from_request_parts(parts, state).await?.admin {
            true => Ok(Self),
            false => Err(Problem::new(Kind::Forbidden, "this needs the admin key")),
        }
    }
}

/// Checks keys and rates.
pub(crate) struct Access {
    /// None where the service is open.
    admin: Option<AdminKey>,
    rates: Option<DefaultKeyedRateLimiter<i64>>,
    unknown: DefaultDirectRateLimiter,
}

/// What the admin's key must be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum AdminKey {
    Hash(KeyHash),
    /// There are API keys and no admin's: nobody is one.
    Nobody,
}

impl Access {
    /// `rate` is the requests a second that one tenant may make of this instance; 0 for any number.
    pub(crate) fn new(admin: Option<AdminKey>, rate: u32) -> Self {
        Self {
            admin,
            rates: NonZeroU32::new(rate).map(|rate| {
                RateLimiter::keyed(Quota::per_second(rate).allow_burst(rate.saturating_mul(BURST)))
            }),
            unknown: RateLimiter::direct(Quota::per_second(UNKNOWN_KEYS)),
        }
    }

    /// Forgets tenants that have been quiet. To be called now and then.
    pub(crate) fn sweep(&self) {
        if let Some(rates) = &self.rates {
            rates.retain_recent();
            rates.shrink_to_fit();
        }
    }

    fn check_rate(&self, company: i64) -> Result<(), Problem> {
        let Some(Err(until)) = self.rates.as_ref().map(|rates| rates.check_key(&company)) else {
            return Ok(());
        };
        let wait = until.wait_time_from(DefaultClock::default().now());
        Err(Problem::new(Kind::TooManyRequests, "this company makes too many requests").retry_after(wait))
    }
}

/// How many seconds' worth of requests may come at once.
const BURST: NonZeroU32 = NonZeroU32::new(2).unwrap();

/// Goes on with a request whose key is in use, and remembers whose it is.
pub(crate) async fn check(service: &Service, router: Router, mut request: Request) -> Response {
    match caller(service, request.headers()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            listen::routed(router, request).await
        }
        Err(problem) => problem.into_response(),
    }
}

async fn caller(service: &Service, headers: &HeaderMap) -> Result<Caller, Problem> {
    let Some(admin) = service.access.admin else { return acting(headers) };
    let presented = headers
        .get(AUTHORIZATION)
        .ok_or_else(|| Problem::of(Kind::Unauthorized, "authorization", "must be `Bearer` and an API key"))?;
    let refused = || Problem::of(Kind::Unauthorized, "authorization", "is no key that is in use");
    let key = presented.to_str().ok().and_then(keys::bearer).ok_or_else(refused)?;
    let hash = KeyHash::of(key);
    if matches!(admin, AdminKey::Hash(known) if known.is(&hash)) {
        return acting(headers);
    }
    if !keys::looks_right(key) {
        return Err(refused());
    }
    let known = match service.caches.api_keys.get_if_cached(&hash) {
        Some(read) => read,
        None if service.access.unknown.check().is_err() => {
            let problem = Problem::new(Kind::TooManyRequests, "too many keys that nobody knows");
            return Err(problem.retry_after(Duration::from_secs(1)));
        }
        None => service.caches.api_keys.get(&hash).await?,
    };
    let company = known.value.ok_or_else(refused)?.company_id;
    service.access.check_rate(company)?;
    Ok(Caller { admin: false, company: Some(company) })
}

/// An admin, or anybody where it is open; for one company where the request says so.
fn acting(headers: &HeaderMap) -> Result<Caller, Problem> {
    let company = match headers.get(COMPANY) {
        None => None,
        Some(given) => match given.to_str().ok().and_then(|text| text.parse().ok()) {
            Some(company) => Some(company),
            None => return Err(Problem::bad(COMPANY, "must be an integer")),
        },
    };
    Ok(Caller { admin: true, company })
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("open", &self.admin.is_none()).finish_non_exhaustive()
    }
}
