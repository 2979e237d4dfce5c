//! Loaders that are one query.

use std::future::Future;
use std::hash::Hash;

use sqlx::postgres::PgRow;
use sqlx::{Encode, FromRow, PgPool, Postgres, Type};

use super::query_as;
use crate::cache::loader::{Load, Loaded};

/// A loader for rows of two columns: the key, and the value. The query gets the keys as its only parameter, an array.
///
/// ```no_run
/// # use perto::{Cache, Perto, StartError, postgres};
/// # fn declare(perto: &Perto, pool: &sqlx::PgPool) -> Result<Cache<i64, String>, StartError> {
/// perto
///     .cache("user")
///     .watch("users", "id")
///     .loader(postgres::by_key(pool, "select id, name from users where id = any($1)"))
/// # }
/// ```
///
/// The Rust types must be those of the columns: a key of `i64` for a `bigint`, of `i32` for an `integer`, and a value of
/// `Option<String>` for a text that may be null. Another one is an error of every load, not of the compiler.
///
/// It reads the primary if the pool does, and keeps its statement prepared: not for a transaction pooler that doesn't
/// ([`Query::persistent`](super::Query::persistent)). Where a loader needs more, write it with [`query_as`].
pub fn by_key<K, V>(
    pool: &PgPool,
    sql: &str,
) -> impl Fn(Load<K>) -> Loading<K, V> + Send + Sync + 'static + use<K, V>
where
    K: Send + 'static,
    V: Send + 'static,
    Vec<K>: Encode<'static, Postgres> + Type<Postgres>,
    (K, V): for<'r> FromRow<'r, PgRow>,
{
    let (pool, sql) = (pool.clone(), sql.to_owned());
    move |load: Load<K>| {
        let (pool, query) = (pool.clone(), query_as::<(K, V)>(&sql).bind(load.keys));
        Box::pin(async move { Ok(query.fetch(&pool).await?.by_key(|row| row)) })
    }
}

/// As [`by_key`], for rows that are the value: `key` says of each which one it is.
///
/// sqlx's derive needs sqlx among your own dependencies: `cargo add sqlx@0.9 --no-default-features --features derive,postgres`.
///
/// ```no_run
/// # use perto::{Cache, Perto, StartError, postgres};
/// #[derive(serde::Serialize, serde::Deserialize, sqlx::FromRow)]
/// struct User {
///     id: i64,
///     name: String,
/// }
///
/// # fn declare(perto: &Perto, pool: &sqlx::PgPool) -> Result<Cache<i64, User>, StartError> {
/// let sql = "select id, name from users where id = any($1)";
/// perto.cache("user").watch("users", "id").loader(postgres::by_key_of(pool, sql, |user: &User| user.id))
/// # }
/// ```
pub fn by_key_of<K, V>(
    pool: &PgPool,
    sql: &str,
    key: impl Fn(&V) -> K + Clone + Send + Sync + 'static,
) -> impl Fn(Load<K>) -> Loading<K, V> + Send + Sync + 'static
where
    K: Hash + Eq + Send + 'static,
    V: Send + for<'r> FromRow<'r, PgRow> + 'static,
    Vec<K>: Encode<'static, Postgres> + Type<Postgres>,
{
    let (pool, sql) = (pool.clone(), sql.to_owned());
    move |load: Load<K>| {
        let (pool, key) = (pool.clone(), key.clone());
        let query = query_as::<V>(&sql).bind(load.keys);
        Box::pin(async move { Ok(query.fetch(&pool).await?.by_key(|row| (key(&row), row))) })
    }
}

/// A load under way.
type Loading<K, V> = std::pin::Pin<Box<dyn Future<Output = Result<Loaded<K, V>, sqlx::Error>> + Send>>;
