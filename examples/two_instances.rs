//! Two instances of one app, here in one process. A token makes a read on the other instance see the write, or what another read has
//! seen.
//!
//! `DATABASE_URL=postgres://postgres@localhost/shop REDIS_URL=redis://localhost cargo run --example two_instances`
#![expect(clippy::print_stdout, reason = "an example shows something")]

use perto::{Cache, Perto, ReadOptions, Token, postgres};
use sqlx::PgPool;

async fn instance(pool: &PgPool) -> Result<(Perto, Cache<i64, i64>), Box<dyn std::error::Error>> {
    let perto = Perto::builder("shop")
        .postgres(&std::env::var("DATABASE_URL")?)
        .redis(&std::env::var("REDIS_URL")?)
        .build()?;
    let stock = perto
        .cache("stock")
        .watch("stock", "item")
        .loader(postgres::by_key(pool, "select item, count from stock where item = any($1)"))?;
    perto.migrate().await?;
    perto.start().await?;
    Ok((perto, stock))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    sqlx::raw_sql(
        "create table if not exists stock (item bigint primary key, count bigint not null); \
         insert into stock values (1, 10) on conflict (item) do update set count = 10",
    )
    .execute(&pool)
    .await?;
    let (a, stock_at_a) = instance(&pool).await?;
    let (b, stock_at_b) = instance(&pool).await?;
    println!("before: {:?}", stock_at_b.get(&1).await?.value());

    let sell = "update stock set count = count - 1 where item = 1";
    let written = a.write(&pool, async |tx| sqlx::query(sell).execute(tx).await).await?;
    // As it would travel: in a header of the response, and of the next request.
    let header = written.token.ok_or("nothing was written")?.to_string();

    let token: Token = header.parse()?;
    let read = stock_at_b.get_with(&1, ReadOptions::at_least(token)).await?;
    println!("after: {:?}", read.value());

    // A read has a token too. A session that sends the last one it got never goes back in time, on whatever instance.
    sqlx::query(sell).execute(&pool).await?; // by hand: no write tells of it
    let seen = stock_at_b.get_with(&1, ReadOptions::latest()).await?;
    println!("one sells by hand: {:?}", seen.value());
    let token = seen.token().ok_or("nobody knows how new it is")?;
    let read = stock_at_a.get_with(&1, ReadOptions::at_least(token)).await?;
    println!("never older: {:?}", read.value());
    a.shutdown().await;
    b.shutdown().await;
    Ok(())
}
