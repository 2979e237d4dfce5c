//! Writes on whatever gives a connection, and a log on what a pool connects to.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use perto::postgres::{Lend, Pool};
use perto::{Perto, Token};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection as _, PgConnection, PgPool, Postgres};

use crate::world::{Instance, World, coherent};

async fn put(tx: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("update items set v = v + 1 where id = 1").execute(tx).await.map(drop)
}

/// Writes through `a`, and reads what it wrote on `b`.
async fn is_read_back(a: &Perto, b: &Instance, v: i64, place: impl Lend) {
    let written = a.write(place, async |tx| put(tx).await).await.unwrap();
    let token: Token = written.token.expect("it wrote a watched table");
    let read = b.items.get_with(&1, perto::ReadOptions::at_least(token)).await.unwrap();
    assert_eq!(read.value(), Some(&v));
}

/// What an application may have around its pool.
struct Counting<'a> {
    pool: &'a PgPool,
    counts: &'a Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    lent: AtomicUsize,
    doubted: AtomicUsize,
}

struct Counted {
    connection: PoolConnection<Postgres>,
    counts: Arc<Counts>,
}

impl Lend for Counting<'_> {
    type Connection = Counted;

    async fn lend(self) -> Result<Counted, sqlx::Error> {
        let connection = self.pool.acquire().await?;
        self.counts.lent.fetch_add(1, Ordering::Relaxed);
        Ok(Counted { connection, counts: Arc::clone(self.counts) })
    }

    fn doubt(connection: &mut Counted) {
        connection.counts.doubted.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.counts.lent.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Deref for Counted {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Counted {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_takes_whatever_gives_a_connection() {
    let world = World::new().await;
    world.put(1, 0).await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    let counts = Arc::new(Counts::default());
    let counting = || Counting { pool: &world.pool, counts: &counts };
    is_read_back(&a.perto, &b, 1, &world.pool).await;
    is_read_back(&a.perto, &b, 2, &Pool::new(&world.pool)).await;
    is_read_back(&a.perto, &b, 3, &mut *world.pool.acquire().await.unwrap()).await;
    is_read_back(&a.perto, &b, 4, counting()).await;
    let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
    assert_eq!((of(&counts.lent), of(&counts.doubted)), (0, 0));
    let failing = a.perto.write(counting(), async |tx| sqlx::query("nonsense").execute(tx).await).await;
    assert!(failing.is_err());
    assert_eq!((of(&counts.lent), of(&counts.doubted)), (0, 1));
}

/// It would be told of, and have a token, though nobody knows yet whether it will be committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_within_a_transaction_of_ones_own_is_refused_and_says_what_to_do() {
    let world = World::new().await;
    world.put(1, 0).await;
    let a = world.start().await;
    let mut connection = world.pool.acquire().await.unwrap();
    let mut tx = connection.begin().await.unwrap();
    let refused = a.perto.write(&mut *tx, async |tx| put(tx).await).await.unwrap_err().to_string();
    assert!(refused.contains("`Perto::pending`"), "{refused}");
    // The transaction goes on.
    put(&mut tx).await.unwrap();
    let pending = a.perto.pending(&mut tx).await.unwrap().expect("it wrote a watched table");
    tx.commit().await.unwrap();
    a.perto.announce_pending(pending).await;
    assert_eq!(a.fresh(1).await, Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_can_be_where_a_pool_connects_to_and_needs_no_place_in_it() {
    let world = World::new().await;
    world.put(1, 0).await;
    let b = world.start().await;
    // The world's own URL is replaced.
    let a = world
        .start_with(
            |perto| perto.postgres("postgres://nobody@nowhere:1/none").pool(&world.pool),
            |cache| cache,
        )
        .await;
    coherent([&a, &b]).await;
    assert_eq!(a.fresh(1).await, Some(0));
    let mut taken = Vec::new();
    while taken.len() < 8 {
        taken.push(world.pool.acquire().await.unwrap());
    }
    a.polled().await;
    a.items.invalidate(&1).await.unwrap();
    coherent([&a]).await;
}

/// As where passwords are tokens that live for minutes: who connects from now on has other ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_follows_a_pool_whose_credentials_rotate() {
    let world = World::new().await;
    world.put(1, 0).await;
    let roles = ["old", "new"].map(|which| format!("{}_{which}", world.name));
    for role in &roles {
        world.sql(&format!("create role {role} superuser login")).await;
    }
    let [old, new] =
        roles.each_ref().map(|role| world.pool.connect_options().as_ref().clone().username(role));
    let pool = PgPoolOptions::new().connect_lazy_with(old);
    let a = world.start_with(|perto| perto.pool(&pool), |cache| cache).await;
    coherent([&a]).await;
    a.items.invalidate(&1).await.unwrap();
    pool.set_connect_options(new);
    world.sql(&format!("alter role {} nologin", roles[0])).await;
    let terminate =
        format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{}'", roles[0]);
    world.sql(&terminate).await;
    a.polled().await;
    coherent([&a]).await;
    a.items.invalidate(&1).await.unwrap();
    world.put(1, 1).await;
    a.polled().await;
    assert_eq!(a.fresh(1).await, Some(1));
    a.perto.shutdown().await;
    for role in &roles {
        world.sql(&terminate.replace(&roles[0], role)).await;
        world.sql(&format!("drop role {role}")).await;
    }
}
