//! The service: caches of a customer-chat product over HTTP, one process of several.
//!
//! The whole surface is on this screen. A resource is a file: types, SQL, loader, routes.
#![expect(unused_qualifications, reason = "what utoipa expands to")]

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use perto::postgres::{self, Written};
use perto::{LogError, Perto, StartError, State};
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgConnection, PgPool};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use access::{Access, AdminKey};
use budget::Budget;
use caches::Caches;
use database::Database;
use fair::Turns;
use fleet::Fleet;
use limits::{Limit, Limits};
use listen::{Guest, Places};
use problem::{Kind, Problem};
use settings::{PoolSettings, Settings};
use telemetry::Telemetry;
use telemetry::instruments::RequestDurations;
use telemetry::spans::{self, Routes};

mod access;
pub(crate) mod administration;
mod answer;
mod api;
mod budget;
mod caches;
mod companies;
mod contact_pages;
mod contacts;
mod dashboard;
pub(crate) mod database;
mod fair;
mod fleet;
pub(crate) mod imports;
mod inbox;
mod input;
pub(crate) mod keys;
mod limits;
mod listen;
mod messages;
mod overview;
mod preload;
mod problem;
mod rules;
pub(crate) mod schema;
pub(crate) mod seed;
pub(crate) mod settings;
mod switches;
pub(crate) mod telemetry;
mod tool_results;
mod users;
mod validation;

/// What every handler has.
#[derive(Debug)]
pub(crate) struct Service {
    settings: Settings,
    perto: Perto,
    /// For what requests write, and read past the caches.
    database: Database,
    caches: Caches,
    access: Access,
    limits: Arc<Limits>,
    places: Arc<Places>,
    budget: Arc<Budget>,
    turns: Turns,
    imports: Arc<imports::Imports>,
    fleet: Fleet,
    dashboard: dashboard::Dashboard,
    telemetry: Telemetry,
    answered: RequestDurations,
    routes: Arc<Routes>,
    /// The end was asked for. Each request looks: a token would take a lock.
    draining: Arc<AtomicBool>,
}

impl Service {
    /// Writes in a transaction, and has every instance evict what it changed.
    pub(crate) async fn write<T, E: From<sqlx::Error>>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<Written<T>, E> {
        let within_limits = async |tx: &mut PgConnection| {
            self.database.limit(tx).await?;
            work(tx).await
        };
        self.perto.write(&self.database, within_limits).await
    }
}

/// How long requests in progress may take after the end was asked for.
const GRACE: Duration = Duration::from_secs(10);

/// Files beside those of the pools and of who asks: the log's connections, Redis, the collector, name look-ups, the runtime.
const KEPT_FILES: usize = 64;

/// What the API has, and its description.
fn resources() -> (Router<Arc<Service>>, OpenApi) {
    OpenApiRouter::with_openapi(api::base())
        .merge(messages::routes())
        .merge(inbox::routes())
        .merge(tool_results::routes())
        .merge(companies::routes())
        .merge(users::routes())
        .merge(overview::routes())
        .merge(contacts::routes())
        .merge(contact_pages::routes())
        .merge(validation::routes())
        .merge(preload::routes())
        .merge(imports::routes())
        .merge(fleet::routes())
        .merge(dashboard::routes())
        .merge(administration::routes())
        .merge(switches::routes())
        .split_for_parts()
}

fn router(service: &Arc<Service>, resources: Router<Arc<Service>>, api: &OpenApi) -> Router {
    Router::new()
        .merge(dashboard::pages())
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(telemetry::metrics))
        .merge(api::routes(api))
        .merge(resources)
        .fallback(async || Problem::not_found("there is no such route"))
        .method_not_allowed_fallback(async || {
            Problem::new(Kind::MethodNotAllowed, "see the `allow` header for those that it has")
        })
        .with_state(Arc::clone(service))
}

/// What every request goes through: who asks, and for how long. Before the router and not as layers of it, which cost each
/// request a copy of its route.
#[derive(Debug, Clone)]
struct Answering {
    service: Arc<Service>,
    router: Router,
}

impl listen::Answering for Answering {
    async fn answer(&self, request: Request, guest: &Guest) -> Response {
        let (service, router) = (&*self.service, self.router.clone());
        let mut response = if request.uri().path().starts_with("/api/") {
            answer_api(service, router, request, guest).await
        } else {
            listen::routed(router, request).await
        };
        if let Some(limit) = response.extensions().get::<Limit>() {
            service.limits.count(*limit);
        }
        // A connection that is closed while it is idle may be closed under a request that is on its way. This one is told before.
        if service.draining.load(Ordering::Relaxed) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

async fn answer_api(service: &Service, router: Router, request: Request, guest: &Guest) -> Response {
    let path = request.uri().path();
    let upload = request.method() == Method::POST && path.ends_with("/contacts/imports");
    let method = spans::known(request.method());
    // Lent to each that takes it, here as below: as a value it would be copied for each, and is large.
    let answering = pin!(async {
        // Before the span: only of who has a key is it believed that there is a trace already.
        let admitted = access::admitted(service, request.headers(), guest).await;
        let span = spans::request(&request, &service.routes, admitted.is_ok());
        let response = match admitted {
            Ok(caller) => {
                let going_on = pin!(access::go_on(service, router, request, caller));
                going_on.instrument(span.clone()).await
            }
            Err(problem) => problem.into_response(),
        };
        spans::answered(&span, &response);
        response
    });
    // A file may take as long as it comes.
    if upload { answering.await } else { timely(service, method, answering).await }
}

async fn timely(
    service: &Service,
    method: &'static str,
    answering: impl Future<Output = Response>,
) -> Response {
    let (timed, limit) = (service.fleet.requests.begin(), service.settings.access.request_timeout);
    let response = match tokio::time::timeout(limit, answering).await {
        Ok(response) => response,
        Err(_elapsed) => Problem::new(Kind::Timeout, format!("no answer within {limit:?}")).into_response(),
    };
    service.answered.record(method, response.status(), timed.ended());
    service.fleet.writes.answered(method, response.status());
    response
}

/// Connections to Postgres. Loads have some to themselves: writers that wait for a row can't stop reads. So has the upkeep
/// of the service, which must go on when requests have taken all the others.
#[derive(Debug)]
pub(crate) struct Pools {
    pub(crate) requests: PgPool,
    pub(crate) loads: PgPool,
    pub(crate) upkeep: PgPool,
}

impl PoolSettings {
    /// How the connections are shared out: to requests, to loads, to the upkeep.
    pub(crate) const fn shares(&self) -> (u32, u32, u32) {
        let upkeep = if self.pool_size < 8 { 1 } else { 2 };
        let loads = self.pool_size * 2 / 5;
        (self.pool_size - loads - upkeep, loads, upkeep)
    }

    pub(crate) fn options(&self, connections: u32, for_writes: bool) -> PgPoolOptions {
        let options = PgPoolOptions::new()
            .max_connections(connections)
            .idle_timeout(self.pool_idle)
            .acquire_timeout(self.pool_acquire);
        postgres::Pool::tested(options, for_writes)
    }
}

/// Where an instance finds what it needs.
#[derive(Debug)]
pub(crate) struct Urls {
    pub(crate) database_url: String,
    /// Without it, L1 and Postgres answer alone.
    pub(crate) redis_url: Option<String>,
}

/// Serves until `end` completes, goes on for the time of `PERTO_DRAIN` or until it completes again, then finishes what is in progress.
pub(crate) async fn run(
    listener: TcpListener,
    settings: Settings,
    urls: Urls,
    pools: Pools,
    telemetry: Telemetry,
    mut end: impl AsyncFnMut(),
) -> anyhow::Result<()> {
    let limits = Arc::new(Limits::default());
    let places = Places::new(places(&settings)?, Arc::clone(&limits));
    // Of the connections for requests as of those for loads, a company has half at most.
    let (for_requests, for_loads, _) = settings.pool.shares();
    let turns = Turns::new(usize::try_from(for_requests.min(for_loads) / 2)?);
    let budget = Budget::new(settings.access.buffered_mib << 20);
    let perto = connect(&settings, &urls)?;
    let on = |pool: &PgPool| Database::new(pool, settings.pool.prepared_statements);
    let (requests, loads, upkeep) = (on(&pools.requests), on(&pools.loads), on(&pools.upkeep));
    let caches = Caches::new(&perto, &loads, &settings)?;
    let reporting = tokio_util::task::TaskTracker::new();
    tokio::select! {
        biased;
        () = end() => return Ok(()),
        started = start(&perto) => started.context("DATABASE_URL")?,
    }
    let access = access(&settings, &requests).await?;
    let address = listener.local_addr()?;
    tracing::info!(instance = settings.instance, %address, bound = ?settings.bound, "serving");
    perto_cli::terminal::say(&format!("{} serves on http://{address}/", settings.instance));
    let imports = imports::Imports::start(
        requests.clone(),
        settings.instance.clone(),
        settings.imports,
        Arc::clone(&limits),
    );
    let (working, watching) = (Arc::clone(&imports), CancellationToken::new());
    let dashboard = dashboard::Dashboard::new(watching.clone());
    let (draining, drain) = (Arc::new(AtomicBool::new(false)), settings.drain);
    let asked = Arc::clone(&draining);
    let end = async move {
        end().await;
        asked.store(true, Ordering::Relaxed);
        working.stop();
        watching.cancel();
        // Whoever asks twice doesn't want to wait.
        drop(tokio::time::timeout(drain, end()).await);
    };
    let fleet = Fleet::new(&settings, &pools, upkeep, urls.redis_url.as_deref(), address)?;
    let (resources, api) = resources();
    let service = Arc::new(Service {
        settings,
        perto: perto.clone(),
        database: requests,
        caches,
        access,
        limits,
        places: Arc::clone(&places),
        budget,
        turns,
        imports: Arc::clone(&imports),
        fleet,
        dashboard,
        answered: RequestDurations::new(&telemetry),
        routes: Arc::new(Routes::new(api.paths.paths.keys())),
        telemetry,
        draining,
    });
    telemetry::instruments::begin(&service);
    let ending = CancellationToken::new();
    reporting.spawn(fleet::run(Arc::clone(&service), ending.clone()));
    reporting.spawn({
        let (service, ending) = (Arc::clone(&service), ending.clone());
        async move {
            let in_use = |keys: Vec<keys::KeyHash>| {
                let database = service.database.clone();
                async move { keys::in_use(&database, &keys).await }
            };
            service.access.unknown.answer(in_use, &ending).await;
        }
    });
    let answering = Answering { service: Arc::clone(&service), router: router(&service, resources, &api) };
    if !listen::serve(listener, answering, places, GRACE, end).await {
        tracing::warn!("requests were still in progress {GRACE:?} after the end was asked for");
    }
    if tokio::time::timeout(GRACE, imports.shutdown()).await.is_err() {
        tracing::warn!("an import was still being written {GRACE:?} after the end was asked for");
    }
    ending.cancel();
    service.telemetry.shutdown().await;
    perto.shutdown().await;
    reporting.close();
    reporting.wait().await;
    // What still holds a connection, a row lock elsewhere keeps waiting: the server ends it by its own limits.
    let closing = async { tokio::join!(pools.requests.close(), pools.loads.close(), pools.upkeep.close()) };
    drop(tokio::time::timeout(GRACE, closing).await);
    Ok(())
}

/// Connections that there are files for: those to Postgres and Redis come first.
fn places(settings: &Settings) -> anyhow::Result<usize> {
    let wanted = usize::try_from(settings.access.max_connections)?;
    let kept = usize::try_from(settings.pool.pool_size)? + KEPT_FILES;
    let places = listen::fitting(wanted, kept)?;
    if places < wanted {
        tracing::warn!(
            places,
            wanted,
            "PERTO_MAX_CONNECTIONS is more than there are files for: raise the limit of open files (`ulimit -n`)"
        );
    }
    Ok(places)
}

/// Between two polls that readers wait for. Who asks for the latest all the time costs Postgres no more than this.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(20);

fn connect(settings: &Settings, urls: &Urls) -> anyhow::Result<Perto> {
    let mut builder = Perto::builder("service")
        .bound(settings.bound)
        .min_poll_interval(MIN_POLL_INTERVAL)
        .postgres(&urls.database_url)
        // A table without a trigger is a trouble and an alert. To answer nobody would be a greater one.
        .allow_unwatched()
        .prepared_statements(settings.pool.prepared_statements);
    match &urls.redis_url {
        Some(url) => builder = builder.redis(url),
        None => tracing::warn!(
            "REDIS_URL is not set: L1 and Postgres answer alone, and every instance loads for itself"
        ),
    }
    Ok(builder.build()?)
}

/// How long Postgres may refuse for a while before the start is given up.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Between two tries.
const START_AGAIN: Duration = Duration::from_millis(500);

/// Tries again where a first poll fails by what passes: a failover, a restart, too many connections.
async fn start(perto: &Perto) -> Result<(), StartError> {
    let began = std::time::Instant::now();
    loop {
        match perto.start().await {
            Err(StartError::Log(error)) if passes(&error) && began.elapsed() < START_LIMIT => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "the invalidation log can't be read yet");
                tokio::time::sleep(START_AGAIN).await;
            }
            started => return started,
        }
    }
}

fn passes(error: &LogError) -> bool {
    match error {
        LogError::Unreachable(_) | LogError::Timeout(_) => true,
        LogError::Refused(cause) => cause
            .downcast_ref::<sqlx::Error>()
            .and_then(sqlx::Error::as_database_error)
            .and_then(sqlx::error::DatabaseError::code)
            // Insufficient resources, operator intervention.
            .is_some_and(|code| code.starts_with("53") || code.starts_with("57")),
        _ => false,
    }
}

/// Open only where there has never been a key: to revoke the last one opens nothing.
async fn access(settings: &Settings, database: &Database) -> anyhow::Result<Access> {
    let any = database.has_keys().await.context("the service's tables: run `perto-chat migrate`")?;
    let admin = match &settings.access.admin_key {
        Some(key) => AdminKey::Hash(keys::KeyHash::of(key)),
        None => AdminKey::Nobody,
    };
    let open = matches!(admin, AdminKey::Nobody) && !any;
    match admin {
        AdminKey::Nobody if open => {
            tracing::warn!("no keys are configured: whoever reaches this address may do anything");
        }
        AdminKey::Nobody => {
            tracing::warn!("PERTO_ADMIN_KEY is not set: nobody can administer the caches");
        }
        AdminKey::Hash(_) => {}
    }
    Ok(Access::new(admin, open, settings.access.rate_limit))
}

async fn readyz(Shared(service): Shared<Arc<Service>>) -> (StatusCode, String) {
    if service.draining.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "ending\n".to_owned());
    }
    let state = service.perto.health().state;
    let ready = matches!(state, State::Coherent | State::Isolated | State::Unverified);
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, format!("{state}\n"))
}
