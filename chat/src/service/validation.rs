//! Whether something would do as a contact, one or a thousand in one call, and whether it is one already.
//!
//! The rules depend on no row: their verdicts stay in L1, for to compute one is cheaper than to fetch it. Existence comes
//! from the contacts by phone at each answer, and is as fresh as they are.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use perto::{Cache, CacheBuilder, Load, Loaded, MAX_KEY_BYTES, Read, StartError, Tier, Token};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Service;
use super::access::{self, Caller};
use super::answer::{self, Composed, Modes, ReadHeaders, Row};
use super::caches::share_of;
use super::companies::{Company, Tenant};
use super::contacts::{ByPhone, Contact, OfCompany};
use super::fair;
use super::input;
use super::problem::Problem;
use super::rules;

pub(crate) const CACHE: &str = "validation";

pub(crate) type Validations = Cache<Question, Verdict>;

/// Most contacts of one call.
const MOST: usize = 1_000;
/// Bytes of the shortest contact, `{"phone":""},`.
const SHORTEST: usize = 13;
/// What is computed before others have their turn: some milliseconds at most.
const AT_ONCE: usize = 50;

/// What may become a contact.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Candidate {
    /// In any form; without a country code it is of the company's region.
    phone: String,
    #[schema(nullable = true)]
    name: Option<String>,
    #[schema(nullable = true)]
    email: Option<String>,
}

/// All that a verdict depends on. Of one company: what another has asked must not show, not even by the time it takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Question {
    company: i64,
    region: String,
    candidate: Candidate,
}

/// What the rules say.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Verdict {
    /// E.164, where it is a phone number.
    phone: Option<String>,
    flaws: Vec<Flaw>,
}

/// What is wrong with a field.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(crate) struct Flaw {
    field: String,
    reason: String,
}

/// What is said of a candidate.
#[derive(Debug, Serialize, ToSchema)]
struct Validation {
    /// Whether it would do.
    valid: bool,
    /// E.164, where it is a phone number.
    phone: Option<String>,
    /// Whether the company has a contact with this phone.
    exists: bool,
    /// That contact's id.
    contact: Option<i64>,
    /// Why it would not do.
    flaws: Vec<Flaw>,
}

/// One, or up to 1,000.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).unwrap_or_default())
    }
}

impl FromStr for Question {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }
}

impl Question {
    fn verdict(&self) -> Verdict {
        let Candidate { phone, name, email } = &self.candidate;
        let phone = rules::phone(phone, &self.region);
        let flaws = [
            phone.as_ref().err().copied(),
            name.as_ref().and_then(|name| rules::name(name).err()),
            email.as_ref().and_then(|email| rules::email(email).err()),
        ];
        let flaw = |flaw: rules::Flaw| Flaw { field: flaw.field.to_owned(), reason: flaw.wrong.to_owned() };
        Verdict { flaws: flaws.into_iter().flatten().map(flaw).collect(), phone: phone.ok() }
    }
}

pub(super) fn cache(settings: CacheBuilder<Question, Verdict>) -> Result<Validations, StartError> {
    settings.local_only().groups(|question, _| share_of(Some(question.company))).loader(
        async |load: Load<Question>| {
            let verdicts = load.keys.into_iter().map(|question| (question.verdict(), question));
            Ok::<_, std::convert::Infallible>(
                verdicts
                    .fold(Loaded::computed(), |loaded, (verdict, question)| loaded.with(question, verdict)),
            )
        },
    )
}

pub(super) fn routes() -> OpenApiRouter<Arc<Service>> {
    OpenApiRouter::new().routes(routes!(validate))
}

/// Whether one candidate, or each of up to 1,000, would do as a contact
///
/// The answer to one is one, and to an array an array, in its order.
#[utoipa::path(post, path = "/api/v1/companies/{company}/contacts/validate", tag = "contacts", params(OfCompany, ReadHeaders),
    request_body = OneOrMany<Candidate>, responses((status = 200, body = OneOrMany<Validation>)))]
async fn validate(
    State(service): State<Arc<Service>>,
    tenant: Tenant,
    caller: Caller,
    request: Request,
) -> Result<Response, Problem> {
    // Before the body is read: to read so many and to refuse them then would cost most of what to validate them does.
    let most = (access::coming(&request) / SHORTEST).min(MOST).max(access::pieces(&request));
    let mut reserved = service.access.reserve(caller.charged(), most)?;
    let bytes = input::json(request).await?;
    reserved.used(access::pieces_of(bytes.len()));
    let json = bytes.trim_ascii_start();
    if !json.starts_with(b"[") {
        let candidate: Candidate = input::object(json)?;
        let found = validations(&service, &tenant, vec![candidate]).await?;
        return Ok(answer::composed(&found.map(|mut validations| validations.pop().map(OneOrMany::One))));
    }
    let candidates: Vec<&RawValue> =
        serde_json::from_slice(json).map_err(|error| Problem::bad("body", &error.to_string()))?;
    if !(1..=MOST).contains(&candidates.len()) {
        return Err(Problem::invalid("body", &format!("must have 1 to {MOST} contacts")));
    }
    // The request itself has been counted.
    reserved.used((candidates.len() - 1).max(access::pieces_of(bytes.len())));
    let candidates = candidates.iter().enumerate().map(|(at, json)| {
        input::object(json.get().as_bytes()).map_err(|problem| problem.inside(&format!("[{at}]")))
    });
    let candidates: Vec<Candidate> = candidates.collect::<Result<_, _>>()?;
    let found = validations(&service, &tenant, candidates).await?;
    Ok(answer::composed(&found.map(OneOrMany::Many)))
}

/// One look-up of what the rules have said, and one of who exists.
async fn validations(
    service: &Service,
    Tenant { company, freshness, token, wanted }: &Tenant,
    candidates: Vec<Candidate>,
) -> Result<Composed<Vec<Validation>>, Problem> {
    let verdicts = verdicts(service, company, candidates).await?;
    let phone = |verdict: &Verdict| Some(ByPhone { company: company.id, phone: verdict.phone.clone()? });
    let mut phones: Vec<ByPhone> = verdicts.iter().filter_map(phone).collect();
    phones.sort_unstable_by(|a, b| a.phone.cmp(&b.phone));
    phones.dedup();
    let turn = fair::turn().await;
    let reads = service.caches.contacts_by_phone.get_many_with(&phones, wanted.options()).await?;
    drop(turn);
    let freshness = reads.iter().map(|read| read.freshness).fold(*freshness, answer::worse);
    let token = Token::of_all(reads.iter().map(Read::token).chain([*token]));
    let tier =
        [Tier::Load, Tier::Remote].into_iter().find(|tier| reads.iter().any(|read| read.tier == *tier));
    let known: std::collections::HashMap<ByPhone, Read<Row<Contact>>> =
        phones.into_iter().zip(reads).collect();
    let answers = verdicts.iter().map(|verdict| {
        let contact =
            phone(verdict).and_then(|phone| known.get(&phone)?.value()).map(|contact| contact.row.id);
        Validation {
            valid: verdict.flaws.is_empty(),
            phone: verdict.phone.clone(),
            exists: contact.is_some(),
            contact,
            flaws: verdict.flaws.clone(),
        }
    });
    let (tier, modes) = (tier.unwrap_or(Tier::Local), Modes::of(&service.caches.contacts_by_phone));
    Ok(Composed { value: answers.collect(), freshness, tier, token, modes })
}

async fn verdicts(
    service: &Service,
    company: &Company,
    candidates: Vec<Candidate>,
) -> Result<Vec<Verdict>, Problem> {
    let question = |candidate| Question { company: company.id, region: company.region.clone(), candidate };
    let questions: Vec<Question> = candidates.into_iter().map(question).collect();
    // What is too long for a key is too long for a contact too: no reason to remember that.
    let fits = |question: &Question| question.to_string().len() <= MAX_KEY_BYTES;
    let short: Vec<Question> = questions.iter().filter(|question| fits(question)).cloned().collect();
    let mut reads = Vec::with_capacity(short.len());
    for some in short.chunks(AT_ONCE) {
        reads.extend(service.caches.validations.get_many(some).await?);
        tokio::task::yield_now().await;
    }
    let mut reads = reads.into_iter();
    Ok(questions
        .iter()
        .map(|question| {
            let read =
                if fits(question) { reads.next().and_then(|read| read.value().cloned()) } else { None };
            read.unwrap_or_else(|| question.verdict())
        })
        .collect())
}
