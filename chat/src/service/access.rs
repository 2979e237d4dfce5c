//! Who asks: every request under `/api/v1` names a tenant by its API key, or is an admin's.
//!
//! Without an admin key and without any API key the service is open, and listens on loopback only. An admin, and anybody
//! where it is open, may say `perto-company` to act for one company.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{FromRequestParts, Request};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response};
use hyper::body::Body as _;

use perto::Tier;

use super::Service;
use super::input;
use super::keys::{self, KeyHash};
use super::limits::Limit;
use super::listen::{self, Guest};
use super::problem::{Kind, Problem};
use rates::Rates;
use unknown::{Looked, Unknown};

mod rates;
mod unknown;

static COMPANY: HeaderName = HeaderName::from_static("perto-company");
/// Keys that nobody knows, looked up in the caches a second where Postgres can't say which are in use.
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

    /// The company whose share it is. An admin who acts for one is still an admin.
    pub(crate) fn charged(self) -> Option<i64> {
        self.company.filter(|_| !self.admin)
    }

    /// Of the request in whose task this is.
    pub(crate) fn asking() -> Option<Self> {
        ASKING.try_with(|caller| *caller).ok()
    }

    /// # Errors
    /// 422 where an admin doesn't say for whom.
    pub(crate) fn own_company(self) -> Result<i64, Problem> {
        self.company.ok_or_else(|| {
            Problem::invalid(
                COMPANY.as_str(),
                "this header must say for which company, since the key doesn't",
            )
        })
    }
}

tokio::task_local! {
    /// Who asks, in the task of the request. As an extension of it, the router's own would have to move for it.
    static ASKING: Caller;
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::asking().ok_or_else(|| Problem::new(Kind::Unauthorized, "no key was checked"))
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
    admin: AdminKey,
    /// Whether there are no keys at all.
    open: AtomicBool,
    /// Keys that were in use a while ago: they are no guesses, also where L1 can't vouch for them.
    known: moka::sync::Cache<KeyHash, ()>,
    rates: Option<Rates<i64>>,
    pub(crate) unknown: Unknown,
    /// Where Postgres can't say which are in use.
    guesses: Rates<()>,
}

/// What the admin's key must be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum AdminKey {
    Hash(KeyHash),
    /// It is not set: where there are keys, nobody is an admin.
    Nobody,
}

impl Access {
    /// `rate` is the requests a second that one tenant may make of this instance; 0 for any number.
    pub(crate) fn new(admin: AdminKey, open: bool, rate: u32) -> Self {
        Self {
            admin,
            open: AtomicBool::new(open),
            known: moka::sync::Cache::builder().max_capacity(100_000).time_to_idle(KNOWN_FOR).build(),
            rates: NonZeroU32::new(rate).map(Rates::new),
            unknown: Unknown::default(),
            guesses: Rates::new(UNKNOWN_KEYS),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// From now on every request needs a key: there is one.
    pub(crate) fn close(&self) {
        self.open.store(false, Ordering::Relaxed);
    }

    /// Where it is open, only what comes from this machine's own pages is answered.
    pub(crate) fn check_origin(&self, headers: &HeaderMap) -> Result<(), Problem> {
        if self.is_open() { check_origin(headers) } else { Ok(()) }
    }

    /// Forgets tenants that have been quiet. To be called now and then.
    pub(crate) fn sweep(&self) {
        if let Some(rates) = &self.rates {
            rates.sweep();
        }
    }

    /// Whether it is worth to look up a key.
    ///
    /// # Errors
    /// 401 where it is not in use, 429 where too many ask for keys that nobody knows.
    async fn look(&self, key: KeyHash) -> Result<(), Problem> {
        match self.unknown.look(key).await {
            Looked::InUse => Ok(()),
            Looked::NotInUse => Err(refused()),
            Looked::NotKnown if self.guesses.take((), 1).is_ok() => Ok(()),
            Looked::NotKnown | Looked::TooMany => {
                Err(Problem::limit(Limit::UnknownKeys, "too many keys that nobody knows"))
            }
        }
    }

    /// Work that is as much as so many requests.
    ///
    /// # Errors
    /// 429 where it is too much for now.
    pub(crate) fn check_work(&self, company: Option<i64>, requests: usize) -> Result<(), Problem> {
        let Some((rates, company)) = self.rates.as_ref().zip(company) else { return Ok(()) };
        rates.take(company, requests).map_err(|wait| {
            Problem::limit(Limit::Rate, "this company makes too many requests, or too large ones")
                .retry_after(wait)
        })
    }

    /// Work of which only the most that it can be is known yet.
    ///
    /// # Errors
    /// 429 where that is too much for now.
    pub(crate) fn reserve(&self, company: Option<i64>, most: usize) -> Result<Reserved<'_>, Problem> {
        self.check_work(company, most)?;
        Ok(Reserved { access: self, company, most, used: 0 })
    }

    /// Waits until work of so many requests may be done. The request's own limit bounds it.
    pub(crate) async fn wait_for_work(&self, company: Option<i64>, requests: usize) {
        let Some((rates, company)) = self.rates.as_ref().zip(company) else { return };
        while let Err(wait) = rates.take(company, requests) {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Requests of a company that are taken until it is known how many they are. When this is dropped, the others are given back.
pub(crate) struct Reserved<'a> {
    access: &'a Access,
    company: Option<i64>,
    most: usize,
    used: usize,
}

impl Reserved<'_> {
    /// So many they are.
    pub(crate) fn used(&mut self, requests: usize) {
        self.used = requests;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Some((rates, company)) = self.access.rates.as_ref().zip(self.company) {
            rates.give_back(company, self.most, self.used);
        }
    }
}

/// How long a key that nobody presents is remembered as no guess.
const KNOWN_FOR: Duration = Duration::from_hours(24);
/// Bytes of a body or of an answer that count as one more request.
const PIECE: usize = 16 * 1024;

/// Goes on with a request of who has a key, and remembers whose it is.
pub(crate) async fn go_on(service: &Service, router: Router, request: Request, caller: Caller) -> Response {
    let company = caller.charged();
    // Until the answer is there: what was read of the body may be in use until then.
    let _coming = match service.budget.take(company, coming(&request)) {
        Ok(hold) => hold,
        Err(problem) => return problem.into_response(),
    };
    let routed = pin!(ASKING.scope(caller, listen::routed(router, request)));
    let response = service.turns.asking(company, routed).await;
    let bytes = response.body().size_hint().exact().unwrap_or_default();
    if let Err(problem) =
        service.access.check_work(company, pieces_of(usize::try_from(bytes).unwrap_or(usize::MAX)))
    {
        return problem.into_response();
    }
    service.budget.counted(company, response)
}

/// How many requests more the body of a request counts as.
pub(crate) fn pieces(request: &Request) -> usize {
    pieces_of(coming(request))
}

pub(crate) const fn pieces_of(bytes: usize) -> usize {
    bytes / PIECE
}

/// What a request may bring into memory at a time.
pub(crate) fn coming(request: &Request) -> usize {
    let coming = request.body().size_hint().upper();
    let bytes = coming.map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    bytes.min(input::MAX_BODY)
}

/// Who asks, where the key is in use and there is a place for the connection.
///
/// # Errors
/// 401 without such a key; 403, 429, 503 as they say.
pub(crate) async fn admitted(
    service: &Service,
    headers: &HeaderMap,
    guest: &Guest,
) -> Result<Caller, Problem> {
    let caller = caller(service, headers).await?;
    guest.shows_key_of(caller.charged()).map_err(|limit| {
        let whose = if limit == Limit::Connections { "of this instance" } else { "of this company" };
        Problem::limit(limit, format!("all connections {whose} are in use"))
    })?;
    Ok(caller)
}

async fn caller(service: &Service, headers: &HeaderMap) -> Result<Caller, Problem> {
    let access = &service.access;
    if access.is_open() {
        check_origin(headers)?;
        return acting(headers);
    }
    let presented = input::only(headers, &AUTHORIZATION)?
        .ok_or_else(|| Problem::of(Kind::Unauthorized, "authorization", "must be `Bearer` and an API key"))?;
    let key = presented.to_str().ok().and_then(keys::bearer).ok_or_else(refused)?;
    let hash = KeyHash::of(key);
    if matches!(access.admin, AdminKey::Hash(known) if known.is(&hash)) {
        return acting(headers);
    }
    if !keys::looks_right(key) {
        return Err(refused());
    }
    // In place: every request of a company asks for the same entry, and would write to its count of references from all cores.
    let company = match service.caches.api_keys.get_ref(&hash, |key| key.map(|key| key.company_id)) {
        Some(company) => company,
        // Apart, so that a request has a place for it only where it needs one.
        None => Box::pin(company_of(service, hash)).await?,
    };
    let Some(company) = company else {
        access.known.invalidate(&hash);
        return Err(refused());
    };
    access.check_work(Some(company), 1)?;
    Ok(Caller { admin: false, company: Some(company) })
}

/// Whose a key is that L1 can't vouch for. None where it is not in use.
async fn company_of(service: &Service, hash: KeyHash) -> Result<Option<i64>, Problem> {
    let access = &service.access;
    if !access.known.contains_key(&hash) {
        access.look(hash).await?;
    }
    let known = service.caches.api_keys.get(&hash).await?;
    if known.tier != Tier::Local && known.value().is_some() {
        access.known.insert(hash, ());
    }
    Ok(known.value().map(|key| key.company_id))
}

fn refused() -> Problem {
    Problem::of(Kind::Unauthorized, "authorization", "is no key that is in use")
}

/// Where it is open, a page of any site that the same machine shows could ask too, if its name were made to lead here.
fn check_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let given = |name: HeaderName| {
        let given = input::only(headers, &name)?;
        Ok::<_, Problem>(given.map(|given| given.to_str().unwrap_or_default()))
    };
    let host = given(HOST)?.unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')).map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    if !(name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())) {
        let wrong = "must be localhost or a loopback address, since no keys are configured";
        return Err(Problem::of(Kind::Forbidden, "host", wrong));
    }
    match given(ORIGIN)? {
        Some(origin) if origin.split_once("://").is_none_or(|(_, from)| from != host) => {
            Err(Problem::of(Kind::Forbidden, "origin", "is another site, and no keys are configured"))
        }
        _ => Ok(()),
    }
}

/// An admin, or anybody where it is open; for one company where the request says so.
fn acting(headers: &HeaderMap) -> Result<Caller, Problem> {
    let company = match input::only(headers, &COMPANY)? {
        None => None,
        Some(given) => match given.to_str().ok().and_then(|text| text.parse().ok()) {
            Some(company) => Some(company),
            None => return Err(Problem::bad(COMPANY.as_str(), "must be an integer")),
        },
    };
    Ok(Caller { admin: true, company })
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("open", &self.is_open()).finish_non_exhaustive()
    }
}
