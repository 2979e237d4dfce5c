//! The service: caches of a customer-chat product over HTTP, one process of several.
//!
//! So far one resource. The whole surface is on this screen; a resource is a file: types, SQL, loader, routes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use perto::{Event, Perto, State};
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;
use tokio::sync::broadcast::error::RecvError;

mod companies;
mod consistency;
pub(crate) mod entries;
pub(crate) mod imports;
mod problem;
mod rules;
pub(crate) mod schema;

/// What an instance is told at its start.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) instance: String,
    pub(crate) bound: Duration,
    pub(crate) database_url: String,
    /// Without it, L1 and Postgres answer alone.
    pub(crate) redis_url: Option<String>,
    pub(crate) imports: imports::Settings,
}

/// What every handler has.
#[derive(Debug)]
pub(crate) struct Service {
    instance: String,
    perto: Perto,
    pool: PgPool,
    companies: companies::Companies,
    imports: Arc<imports::Imports>,
}

/// How long requests in progress may take after the end was asked for.
const GRACE: Duration = Duration::from_secs(10);

fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/livez", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/api/v1/cache/instances", get(instances))
        .route("/api/v1/cache/{cache}/entries/{key}", get(entries::read))
        .route("/api/v1/companies", axum::routing::post(companies::create))
        .route(
            "/api/v1/companies/{id}",
            get(companies::read).patch(companies::change).delete(companies::delete),
        )
        .nest("/api/v1", Router::from(imports::routes()))
        .fallback(async || problem::Problem::not_found("there is no such route"))
        .method_not_allowed_fallback(async || problem::Problem::method_not_allowed())
        .with_state(service)
}

/// Connections to Postgres, 20 in all. Loads have some to themselves: writers that wait for a row can't stop reads.
#[derive(Debug)]
pub(crate) struct Pools {
    pub(crate) requests: PgPool,
    pub(crate) loads: PgPool,
}

/// 30 s idle, 10 s to acquire.
pub(crate) fn pool_options(connections: u32) -> PgPoolOptions {
    PgPoolOptions::new()
        .max_connections(connections)
        .idle_timeout(Duration::from_secs(30))
        .acquire_timeout(Duration::from_secs(10))
}

/// Serves until `end` completes, then finishes what is in progress.
pub(crate) async fn run(
    listener: TcpListener,
    settings: Settings,
    pools: Pools,
    end: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("RUST_LOG").unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .try_init()
        .map_err(anyhow::Error::from_boxed)?;
    let mut builder = Perto::builder("service").bound(settings.bound).postgres(&settings.database_url);
    match &settings.redis_url {
        Some(url) => builder = builder.redis(url),
        None => tracing::warn!(
            "REDIS_URL is not set: L1 and Postgres answer alone, and every instance loads for itself"
        ),
    }
    let perto = builder.build()?;
    let companies = companies::cache(&perto, pools.loads.clone())?;
    let reporting = tokio_util::task::TaskTracker::new();
    reporting.spawn(report(perto.clone(), settings.instance.clone()));
    perto.start().await.context("DATABASE_URL")?;
    let address = listener.local_addr()?;
    tracing::info!(instance = settings.instance, %address, bound = ?settings.bound, "serving");
    crate::cli::say(&format!("{} serves on http://{address}/", settings.instance));
    let imports =
        imports::Imports::start(pools.requests.clone(), settings.instance.clone(), settings.imports);
    let service = Arc::new(Service {
        instance: settings.instance,
        perto: perto.clone(),
        pool: pools.requests.clone(),
        companies,
        imports: Arc::clone(&imports),
    });
    let working = Arc::clone(&imports);
    let (ending, ended) = tokio::sync::oneshot::channel::<()>();
    let serving = axum::serve(listener, router(service)).with_graceful_shutdown(async move {
        end.await;
        working.stop();
        drop(ending);
    });
    tokio::select! {
        served = serving.into_future() => served?,
        () = async {
            drop(ended.await);
            tokio::time::sleep(GRACE).await;
        } => tracing::warn!("requests were still in progress {GRACE:?} after the end was asked for"),
    }
    if tokio::time::timeout(GRACE, imports.shutdown()).await.is_err() {
        tracing::warn!("an import was still being written {GRACE:?} after the end was asked for");
    }
    perto.shutdown().await;
    reporting.close();
    reporting.wait().await;
    // What still holds a connection, a row lock elsewhere keeps waiting: the server ends it by its own limits.
    let closing = async { tokio::join!(pools.requests.close(), pools.loads.close()) };
    drop(tokio::time::timeout(GRACE, closing).await);
    Ok(())
}

/// Logs what happens to the instance. Ends when it is closed.
async fn report(perto: Perto, instance: String) {
    let mut events = perto.events();
    drop(perto);
    loop {
        let event = match events.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(lost)) => {
                tracing::warn!(instance, lost, "events came too fast to be logged");
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        match event {
            Event::State { to: State::Closed, .. } => return,
            Event::State { from, to } => tracing::info!(instance, %from, %to, "state"),
            Event::Unwatched { cache, table } => {
                tracing::warn!(
                    instance,
                    cache,
                    table,
                    "writes to this table are not seen: run `perto watch`"
                );
            }
            Event::AuditViolation { cache, key_hash } => tracing::error!(
                name: "perto.audit.violations",
                instance,
                cache,
                key_hash = format!("{key_hash:016x}"),
                "what was served is not what Postgres says, and nothing in the log explains it: run `perto doctor`"
            ),
            Event::TrimFailed { error } => {
                tracing::warn!(instance, error, "the invalidation log can't be trimmed");
            }
            Event::PollFailed { error } => {
                tracing::warn!(instance, error, "the invalidation log can't be read");
            }
            other => tracing::info!(instance, event = ?other, "event"),
        }
    }
}

async fn index(Shared(service): Shared<Arc<Service>>) -> String {
    format!(
        "Perto, {}\n\nGET   /api/v1/companies/1\nPATCH /api/v1/companies/1   {{\"name\": \"...\"}}\nGET   /api/v1/cache/instances\nGET   /api/v1/cache/company/entries/1\nGET   /readyz\n",
        service.instance
    )
}

async fn readyz(Shared(service): Shared<Arc<Service>>) -> (StatusCode, String) {
    let state = service.perto.health().state;
    let ready = matches!(state, State::Coherent | State::Isolated | State::Unverified);
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, format!("{state}\n"))
}

/// This instance; the others come with the fleet's figures.
async fn instances(Shared(service): Shared<Arc<Service>>) -> Json<Value> {
    let (health, stats) = (service.perto.health(), service.perto.stats());
    let cache = service.companies.stats();
    let audits = service.perto.audits();
    Json(json!([{
        "instance": service.instance,
        "state": health.state.to_string(),
        "leaseLeftMs": u64::try_from(health.lease_left.as_millis()).unwrap_or(u64::MAX),
        "remoteUp": health.remote_up,
        "busUp": health.bus_up,
        "polls": stats.polls,
        "hints": stats.hints,
        "repairs": stats.repairs,
        "audits": { "5m": audited(audits.five_minutes), "1h": audited(audits.hour), "1d": audited(audits.day) },
        "companies": { "l1Hits": cache.l1_hits, "l2Hits": cache.l2_hits, "loadHits": cache.load_hits, "loads": cache.loads },
    }]))
}

/// How much of what was served was right, of what was looked at.
fn audited(audited: perto::Audited) -> Value {
    json!({ "audits": audited.audits, "violations": audited.violations, "nines": (audited.nines() * 10.0).round() / 10.0 })
}
