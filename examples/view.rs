//! Two accounts, read at one moment: while SQL by hand moves money between them, no view shows a transfer half done.
//!
//! `DATABASE_URL=postgres://localhost/shop REDIS_URL=redis://localhost cargo run --example view`
#![expect(clippy::print_stdout, reason = "an example shows something")]

use std::time::Duration;

use perto::{Cache, Error, Perto, postgres};
use sqlx::PgPool;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let database_url = std::env::var("DATABASE_URL")?;
    let pool = PgPool::connect(&database_url).await?;
    sqlx::raw_sql(
        "create table if not exists accounts (id bigint primary key, cents bigint not null); \
         insert into accounts values (1, 100), (2, 0) on conflict (id) do update set cents = excluded.cents",
    )
    .execute(&pool)
    .await?;
    let perto = Perto::builder("bank").postgres(&database_url).redis(&std::env::var("REDIS_URL")?).build()?;
    let accounts: Cache<i64, i64> = perto
        .cache("account")
        .watch("accounts", "id")
        .loader(postgres::by_key(&pool, "select id, cents from accounts where id = any($1)"))?;
    perto.migrate().await?;
    perto.start().await?;
    perto.ready().await?;

    let accounts = &accounts;
    let both = async || {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let both = perto.view(|view| async move { view.get_many(accounts, &[1, 2]).await }).await?;
        Ok::<_, Error>([0, 1].map(|at| both[at].value().copied().unwrap_or_default()))
    };
    println!("before: {:?}", both().await?);
    let mut transfers = std::pin::pin!(async {
        let one = "update accounts set cents = cents + case id when 1 then -1 else 1 end where id in (1, 2)";
        for _cent in 0..100 {
            sqlx::query(one).execute(&pool).await?;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok::<_, sqlx::Error>(())
    });
    let mut half_done = 0;
    loop {
        tokio::select! {
            done = &mut transfers => break done?,
            both = both() => half_done += u32::from(both?.iter().sum::<i64>() != 100),
        }
    }
    println!("seen half done: {half_done}");
    tokio::time::sleep(Duration::from_secs(1)).await; // the bound
    println!("after: {:?}", both().await?);
    perto.shutdown().await;
    Ok(())
}
