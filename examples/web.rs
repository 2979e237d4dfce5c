//! A web service in one file: an item is read from the cache, and written with a token for whoever must read it back.
//!
//! `DATABASE_URL=postgres://postgres@localhost/shop REDIS_URL=redis://localhost cargo run --example web`, then
//! `curl -i -X PUT -d '"tea"' -H 'content-type: application/json' localhost:3000/items/1` and `curl -i localhost:3000/items/1`.
#![expect(clippy::print_stdout, reason = "an example shows something")]

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use axum::{Json, Router};
use perto::{Cache, Perto, ReadOptions, postgres};
use sqlx::PgPool;

const TOKEN: &str = "perto-token";

#[derive(Clone)]
struct App {
    pool: PgPool,
    perto: Perto,
    items: Cache<i64, String>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let database_url = std::env::var("DATABASE_URL")?;
    let pool = PgPool::connect(&database_url).await?;
    let table = "create table if not exists items (id bigint primary key, name text not null)";
    sqlx::raw_sql(table).execute(&pool).await?;
    let perto = Perto::builder("web").postgres(&database_url).redis(&std::env::var("REDIS_URL")?).build()?;
    let items = perto
        .cache("item")
        .watch("items", "id")
        .loader(postgres::by_key(&pool, "select id, name from items where id = any($1)"))?;
    perto.migrate().await?;
    perto.start().await?;

    let app = App { pool, perto: perto.clone(), items };
    let router = Router::new().route("/items/{id}", get(read).put(write)).with_state(app);
    let listener = tokio::net::TcpListener::bind(
        std::env::var("LISTEN").unwrap_or_else(|_unset| "127.0.0.1:3000".to_owned()),
    )
    .await?;
    println!("http://{}/items/1", listener.local_addr()?);
    axum::serve(listener, router)
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    perto.shutdown().await;
    Ok(())
}

async fn read(
    State(app): State<App>,
    Path(id): Path<i64>,
    headers: HeaderMap,
) -> Result<Json<String>, StatusCode> {
    let token = headers.get(TOKEN).and_then(|token| token.to_str().ok()?.parse().ok());
    let options = token.map_or_else(ReadOptions::default, ReadOptions::at_least);
    match app.items.get_with(&id, options).await {
        Ok(read) => read.value().map(|name| Json(name.clone())).ok_or(StatusCode::NOT_FOUND),
        Err(_error) => Err(StatusCode::SERVICE_UNAVAILABLE),
    }
}

async fn write(
    State(app): State<App>,
    Path(id): Path<i64>,
    Json(name): Json<String>,
) -> Result<(HeaderMap, StatusCode), StatusCode> {
    let sql = "insert into items values ($1, $2) on conflict (id) do update set name = excluded.name";
    let writing = async |tx: &mut sqlx::PgConnection| sqlx::query(sql).bind(id).bind(name).execute(tx).await;
    let written = app.perto.write(&app.pool, writing).await;
    let written = written.map_err(|_error| StatusCode::SERVICE_UNAVAILABLE)?;
    let token = written.token.and_then(|token| token.to_string().parse().ok());
    let headers = token.map(|token| HeaderMap::from_iter([(TOKEN.parse().expect("a name"), token)]));
    Ok((headers.unwrap_or_default(), StatusCode::NO_CONTENT))
}
