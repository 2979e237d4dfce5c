//! With sqlx, in a transaction of your own. Where Perto may make the transaction, `Perto::write` is shorter.
//!
//! `DATABASE_URL=postgres://postgres@localhost/shop REDIS_URL=redis://localhost cargo run -p perto-clients --example with_sqlx`
#![expect(clippy::print_stdout, reason = "an example shows something")]

use perto::{Cache, Load, Perto, ReadOptions, StartError, Token, postgres};
use sqlx::PgPool;

type Error = Box<dyn std::error::Error + Send + Sync>;

pub(crate) async fn pool(database_url: &str) -> Result<PgPool, Error> {
    Ok(PgPool::connect(database_url).await?)
}

fn users(perto: &Perto, pool: &PgPool) -> Result<Cache<i64, String>, StartError> {
    let pool = pool.clone();
    perto.cache("user").watch("users", "id").loader(move |load: Load<i64>| {
        let pool = pool.clone();
        async move {
            // It adds the stamp to the statement.
            let query = postgres::query_as::<(i64, String)>("select id, name from users where id = any($1)");
            let rows = query.bind(load.keys).fetch(&pool).await?;
            Ok::<_, sqlx::Error>(rows.by_key(|row| row))
        }
    })
}

pub(crate) async fn rename(
    perto: &Perto,
    pool: &PgPool,
    id: i64,
    name: &str,
) -> Result<Option<Token>, Error> {
    let mut tx = pool.begin().await?;
    sqlx::query("update users set name = $1 where id = $2").bind(name).bind(id).execute(&mut *tx).await?;
    let pending = perto.pending(&mut tx).await?;
    tx.commit().await?;
    Ok(match pending {
        Some(pending) => Some(perto.announce_pending(pending).await),
        None => None, // no row of a watched table was changed
    })
}

pub(crate) async fn instance(
    database_url: &str,
    redis_url: &str,
    pool: &PgPool,
) -> Result<(Perto, Cache<i64, String>), Error> {
    let perto = Perto::builder("shop").postgres(database_url).redis(redis_url).build()?;
    let users = users(&perto, pool)?;
    perto.migrate().await?;
    perto.start().await?;
    Ok((perto, users))
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (database_url, redis_url) = (std::env::var("DATABASE_URL")?, std::env::var("REDIS_URL")?);
    let pool = pool(&database_url).await?;
    let tables = "create table if not exists users (id bigint primary key, name text not null); \
                  insert into users values (7, 'Grace') on conflict (id) do update set name = 'Grace'";
    sqlx::raw_sql(tables).execute(&pool).await?;
    let (a, _) = instance(&database_url, &redis_url, &pool).await?;
    let (b, users_at_b) = instance(&database_url, &redis_url, &pool).await?;
    println!("before: {:?}", users_at_b.get(&7).await?.value());

    let token = rename(&a, &pool, 7, "Ada").await?.ok_or("nothing was written")?;
    println!("after: {:?}", users_at_b.get_with(&7, ReadOptions::at_least(token)).await?.value());
    a.shutdown().await;
    b.shutdown().await;
    Ok(())
}
