//! With tokio-postgres, and deadpool-postgres for its pool.
//!
//! `DATABASE_URL=postgres://postgres@localhost/shop REDIS_URL=redis://localhost cargo run -p perto-clients --example with_tokio_postgres`
#![expect(clippy::print_stdout, reason = "an example shows something")]

use deadpool_postgres::{Manager, Pool};
use perto::postgres::Pending;
use perto::{Cache, Load, Loaded, Perto, ReadOptions, STAMP_SQL, Stamp, StartError, Token};
use tokio_postgres::{NoTls, Row};

type Error = Box<dyn std::error::Error + Send + Sync>;

pub(crate) fn pool(database_url: &str) -> Result<Pool, Error> {
    Ok(Pool::builder(Manager::new(database_url.parse()?, NoTls)).build()?)
}

fn users(perto: &Perto, pool: &Pool) -> Result<Cache<i64, String>, StartError> {
    let pool = pool.clone();
    perto.cache("user").watch("users", "id").loader(move |load: Load<i64>| {
        let pool = pool.clone();
        async move { names(&pool, load.keys).await }
    })
}

async fn names(pool: &Pool, ids: Vec<i64>) -> Result<Loaded<i64, String>, Error> {
    // The stamp is of the statement that reads the rows. The outer join brings it also where there is no row.
    let sql = format!(
        "select s.stamp, u.id, u.name from (select {STAMP_SQL} as stamp) s left join users u on u.id = any($1)"
    );
    let rows = pool.get().await?.query(&sql, &[&ids]).await?;
    let stamp = rows.first().and_then(|row| Stamp::parse(row.get(0))).ok_or("not a stamp")?;
    Ok(rows.iter().fold(Loaded::new(stamp), |loaded, row| match (row.get(1), row.get(2)) {
        (Some(id), Some(name)) => loaded.with(id, name),
        _ => loaded,
    }))
}

pub(crate) async fn rename(perto: &Perto, pool: &Pool, id: i64, name: &str) -> Result<Option<Token>, Error> {
    let mut client = pool.get().await?;
    let tx = client.transaction().await?;
    tx.execute("update users set name = $1 where id = $2", &[&name, &id]).await?;
    // Deferred triggers run now. What they write at the commit would be missing from the token.
    tx.batch_execute("set constraints all immediate").await?;
    let rows = tx.query(&perto.pending_sql(), &[]).await?;
    let row = |row: &Row| (row.get(0), row.get(1), row.get(2), row.get(3));
    let pending = Pending::from_rows(rows.iter().map(row));
    tx.commit().await?;
    drop(client);
    Ok(match pending {
        Some(pending) => Some(perto.announce_pending(pending).await),
        None => None, // no row of a watched table was changed
    })
}

pub(crate) async fn instance(
    database_url: &str,
    redis_url: &str,
    pool: &Pool,
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
    let pool = pool(&database_url)?;
    let tables = "create table if not exists users (id bigint primary key, name text not null); \
                  insert into users values (7, 'Grace') on conflict (id) do update set name = 'Grace'";
    pool.get().await?.batch_execute(tables).await?;
    let (a, _) = instance(&database_url, &redis_url, &pool).await?;
    let (b, users_at_b) = instance(&database_url, &redis_url, &pool).await?;
    println!("before: {:?}", users_at_b.get(&7).await?.value());

    let token = rename(&a, &pool, 7, "Ada").await?.ok_or("nothing was written")?;
    println!("after: {:?}", users_at_b.get_with(&7, ReadOptions::at_least(token)).await?.value());
    a.shutdown().await;
    b.shutdown().await;
    Ok(())
}
