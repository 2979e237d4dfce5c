//! With Diesel, by diesel-async.
//!
//! `DATABASE_URL=postgres://postgres@localhost/shop REDIS_URL=redis://localhost cargo run -p perto-clients --example with_diesel`
#![expect(clippy::print_stdout, reason = "an example shows something")]

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Nullable, Text};
use diesel_async::pooled_connection::{AsyncDieselConnectionManager, deadpool};
use diesel_async::{AsyncConnection, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection};
use perto::postgres::{Pending, PendingRow};
use perto::{Cache, Load, Loaded, Perto, ReadOptions, STAMP_SQL, Stamp, StartError, Token};

diesel::table! {
    /// What is cached.
    users (id) {
        /// The key.
        id -> BigInt,
        /// The value.
        name -> Text,
    }
}

/// A user beside the stamp; none where there is no such user.
#[derive(QueryableByName)]
struct Stamped {
    #[diesel(sql_type = Text)]
    stamp: String,
    #[diesel(sql_type = Nullable<BigInt>)]
    id: Option<i64>,
    #[diesel(sql_type = Nullable<Text>)]
    name: Option<String>,
}

type Pool = deadpool::Pool<AsyncPgConnection>;
type Error = Box<dyn std::error::Error + Send + Sync>;

pub(crate) fn pool(database_url: &str) -> Result<Pool, Error> {
    Ok(Pool::builder(AsyncDieselConnectionManager::new(database_url)).build()?)
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
    let query = diesel::sql_query(format!(
        "select s.stamp, u.id, u.name from (select {STAMP_SQL} as stamp) s left join users u on u.id = any($1)"
    ));
    let rows: Vec<Stamped> = query.bind::<Array<BigInt>, _>(ids).load(&mut pool.get().await?).await?;
    // As a slice, for Diesel has a `first` of its own.
    let stamp = rows.as_slice().first().and_then(|row| Stamp::parse(&row.stamp)).ok_or("not a stamp")?;
    Ok(rows.into_iter().fold(Loaded::new(stamp), |loaded, row| match (row.id, row.name) {
        (Some(id), Some(name)) => loaded.with(id, name),
        _ => loaded,
    }))
}

pub(crate) async fn rename(perto: &Perto, pool: &Pool, id: i64, name: &str) -> Result<Option<Token>, Error> {
    let ask = perto.pending_sql();
    let mut conn = pool.get().await?;
    let work = conn.transaction(async |conn| {
        diesel::update(users::table.find(id)).set(users::name.eq(name)).execute(conn).await?;
        // Deferred triggers run now. What they write at the commit would be missing from the token.
        conn.batch_execute("set constraints all immediate").await?;
        let rows =
            sql::<(BigInt, Nullable<BigInt>, Text, Nullable<Text>)>(&ask).load::<PendingRow>(conn).await?;
        Ok::<_, diesel::result::Error>(Pending::from_rows(rows))
    });
    let pending = work.await?;
    drop(conn);
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
