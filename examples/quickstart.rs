//! The README's program, which `tests/examples` compares and runs: SQL typed by hand is seen.
//!
//! `DATABASE_URL=postgres://postgres@localhost/shop REDIS_URL=redis://localhost cargo run --example quickstart`
#![expect(clippy::print_stdout, reason = "an example shows something")]

use std::time::{Duration, Instant};

use perto::postgres::sqlx::PgPool;
use perto::{Cache, Perto, Read, postgres};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let variable = |name| std::env::var(name).map_err(|why| format!("{name}: {why}"));
    let pool = PgPool::connect_lazy_with(postgres::options(&variable("DATABASE_URL")?)?);
    // Programs of one name share what they put into Redis.
    let perto = Perto::builder("near").pool(&pool).redis(&variable("REDIS_URL")?).build()?;
    let users: Cache<i64, String> = perto
        .cache("user")
        .watch("users", "id") // every SQL write to `users` invalidates the key `id`
        .loader(postgres::by_key(&pool, "select id, name from users where id = any($1)"))?;
    perto.migrate().await?; // once for the database: the log's tables, the triggers
    perto.start().await?;
    perto.ready().await?;

    let show = |read: &Read<String>| println!("{:?}, {:?}, {:?}", read.value(), read.freshness, read.tier);
    let before = users.get(&7).await?;
    show(&before);
    show(&users.get(&7).await?);

    println!("In psql: update users set name = name || '!' where id = 7;");
    let end = Instant::now() + Duration::from_secs(60);
    let mut read = before.clone();
    while read.value() == before.value() && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(10)).await;
        read = users.get(&7).await?;
    }
    show(&read);
    perto.shutdown().await;
    Ok(())
}
