//! A cache over one table: ten lines, and SQL typed by hand is seen.
//!
//! `DATABASE_URL=postgres://localhost/shop REDIS_URL=redis://localhost cargo run --example quickstart`
#![expect(clippy::print_stdout, reason = "an example shows something")]

use perto::{Cache, Perto, postgres};
use sqlx::PgPool;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (database_url, redis_url) = (std::env::var("DATABASE_URL")?, std::env::var("REDIS_URL")?);
    let pool = PgPool::connect(&database_url).await?;
    sqlx::raw_sql(
        "create table if not exists users (id bigint primary key, name text not null); \
         insert into users values (7, 'Grace') on conflict (id) do update set name = 'Grace'",
    )
    .execute(&pool)
    .await?;

    let perto = Perto::builder("shop").postgres(&database_url).redis(&redis_url).build()?;
    let users: Cache<i64, String> = perto
        .cache("user")
        .watch("users", "id") // every SQL write to `users` invalidates the key `id`
        .loader(postgres::by_key(&pool, "select id, name from users where id = any($1)"))?;
    perto.migrate().await?; // the log's tables and the triggers, once for the database
    perto.start().await?;
    perto.ready().await?;

    for _ in 0..2 {
        let read = users.get(&7).await?;
        println!("{:?}, {:?}, from {:?}", read.value, read.freshness, read.tier);
    }

    // Somebody types SQL. Perto is told by the log, within the bound of a second.
    sqlx::raw_sql("update users set name = 'Ada' where id = 7").execute(&pool).await?;
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    println!("{:?}", users.get(&7).await?.value);

    // A write through Perto is seen by every instance after about a millisecond, and by this one at once.
    let sql = "update users set name = 'Edsger' where id = 7";
    perto.write(&pool, async |tx| sqlx::query(sql).execute(tx).await).await?;
    println!("{:?}", users.get(&7).await?.value);

    perto.shutdown().await;
    Ok(())
}
