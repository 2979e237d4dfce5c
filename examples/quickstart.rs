//! The README's program, which `tests/examples` compares and runs: SQL typed by hand is seen.
//!
//! `DATABASE_URL=postgres://localhost/shop REDIS_URL=redis://localhost cargo run --example quickstart`
#![expect(clippy::print_stdout, reason = "an example shows something")]

use std::time::Duration;

use perto::postgres::sqlx::PgPool;
use perto::{Cache, Perto, Read, postgres};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (database_url, redis_url) = (std::env::var("DATABASE_URL")?, std::env::var("REDIS_URL")?);
    let pool = PgPool::connect(&database_url).await?;
    let perto = Perto::builder("shop").postgres(&database_url).redis(&redis_url).build()?;
    let users: Cache<i64, String> = perto
        .cache("user")
        .watch("users", "id") // every SQL write to `users` invalidates the key `id`
        .loader(postgres::by_key(&pool, "select id, name from users where id = any($1)"))?;
    perto.migrate().await?; // once for the database: the log's tables, the triggers
    perto.start().await?;
    perto.ready().await?;

    let show = |read: &Read<String>| println!("{:?}, {:?}, {:?}", read.value, read.freshness, read.tier);
    let before = users.get(&7).await?;
    show(&before);
    show(&users.get(&7).await?);

    println!("In psql: update users set name = 'Ada' where id = 7;");
    for _ in 0..6_000 {
        let read = users.get(&7).await?;
        if read.value != before.value {
            show(&read);
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    perto.shutdown().await;
    Ok(())
}
