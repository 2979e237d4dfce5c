//! What each example shows, on real engines: reads, SQL typed by hand, a write and its token, a write that is rolled back.
//!
//! Redis is at `REDIS_URL`, Postgres at `DATABASE_URL`, else at their usual places on this machine. Examples are built by
//! `cargo test` without `--test`; else by `cargo build -p perto-clients --examples`.
#![expect(clippy::unwrap_used, reason = "a test that unwraps nothing fails")]

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Command;
use std::time::{Duration, Instant};

use perto::{Cache, Freshness, Perto, Read, ReadOptions, Tier, Token};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, PgConnection};

#[expect(dead_code, reason = "`main` is run as a program")]
mod with_diesel;
#[expect(dead_code, reason = "`main` is run as a program")]
mod with_sea_orm;
#[expect(dead_code, reason = "`main` is run as a program")]
mod with_sqlx;
#[expect(dead_code, reason = "`main` is run as a program")]
mod with_tokio_postgres;

/// For what must happen soon, and may take longer on a busy machine.
const SOON: Duration = Duration::from_secs(30);
/// Perto's default.
const BOUND: Duration = Duration::from_secs(1);

/// A name is given once, which is looked at when the transaction ends. Who renames 7 then renames 8, in the same transaction.
const TABLES: &str = "
    create table users (id bigint primary key, name text not null unique deferrable initially deferred);
    insert into users values (7, 'Grace'), (8, 'friend of Grace'), (9, 'Edsger');
    create function befriend() returns trigger language plpgsql as $$
    begin
        update users set name = 'friend of ' || new.name where id = 8;
        return null;
    end $$;
    create constraint trigger befriends after update on users deferrable initially deferred
        for each row when (new.id = 7) execute function befriend()";

type Error = Box<dyn std::error::Error + Send + Sync>;
type Renaming = Pin<Box<dyn Future<Output = Result<Option<Token>, Error>>>>;

/// Two instances that load by the same client.
struct World {
    a: Perto,
    b: Perto,
    at_a: Cache<i64, String>,
    at_b: Cache<i64, String>,
    /// The example's write, on instance a.
    rename: Box<dyn Fn(i64, &'static str) -> Renaming>,
    by_hand: PgConnection,
    database: Database,
}

impl World {
    async fn run(&mut self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&mut self.by_hand).await.unwrap();
    }

    async fn end(self) {
        self.a.shutdown().await;
        self.b.shutdown().await;
        drop((self.rename, self.by_hand));
        self.database.end().await;
    }
}

/// A database of the test's own, dropped at the end.
struct Database {
    name: String,
    server: PgConnectOptions,
}

impl Database {
    async fn new(test: &str) -> Self {
        let url = std::env::var("DATABASE_URL")
            .unwrap_or_else(|_unset| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
        let name = format!("perto_{test}_{}", std::process::id());
        let this = Self { name, server: url.parse::<PgConnectOptions>().unwrap().database("postgres") };
        this.run(&format!("drop database if exists {} with (force)", this.name)).await;
        this.run(&format!("create database {}", this.name)).await;
        this
    }

    async fn run(&self, sql: &str) {
        let mut connection = self.server.connect().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }

    fn options(&self) -> PgConnectOptions {
        self.server.clone().database(&self.name)
    }

    /// Without what only sqlx knows: other clients refuse it.
    fn url(&self) -> String {
        let mut url = self.options().to_url_lossy();
        let known = url.query_pairs().filter(|(name, _)| name != "statement-cache-capacity");
        let known: Vec<_> = known.map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        url.query_pairs_mut().clear().extend_pairs(known);
        url.into()
    }

    async fn end(self) {
        self.run(&format!("drop database {} with (force)", self.name)).await;
    }
}

fn redis_url() -> String {
    std::env::var("REDIS_URL").unwrap_or_else(|_unset| "redis://127.0.0.1:6379".to_owned())
}

fn name_of(read: &Read<String>) -> Option<&str> {
    read.value().map(String::as_str)
}

async fn prints(example: &str, lines: &[&str]) {
    let database = Database::new(&format!("{example}_runs")).await;
    let tests = std::env::current_exe().unwrap();
    let program: PathBuf = tests.parent().unwrap().parent().unwrap().join("examples").join(example);
    assert!(program.exists(), "{} is not built: cargo build --examples", program.display());
    let mut command = Command::new(program);
    command.env("DATABASE_URL", database.url()).env("REDIS_URL", redis_url());
    let output = command.output().unwrap();
    let (said, complained) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{example}: {complained}");
    assert_eq!(said.lines().collect::<Vec<_>>(), lines, "{complained}");
    database.end().await;
}

async fn rows_are_read_and_what_is_absent_is_cached_too(world: World) {
    let World { at_a, at_b, .. } = &world;
    let read = at_a.get(&7).await.unwrap();
    assert_eq!((name_of(&read), read.freshness, read.tier), (Some("Grace"), Freshness::Fresh, Tier::Load));
    for (id, name) in [(7, Some("Grace")), (404, None)] {
        // Loaded, and then from memory: its stamp was accepted.
        let deadline = Instant::now() + SOON;
        loop {
            let read = at_a.get(&id).await.unwrap();
            assert_eq!(name_of(&read), name);
            if read.tier == Tier::Local {
                break;
            }
            assert!(Instant::now() < deadline, "{id} is never cached: {read:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let read = at_b.get_many(&[9, 404, 7]).await.unwrap();
    let names: Vec<_> = read.iter().map(name_of).collect();
    assert_eq!(names, [Some("Edsger"), None, Some("Grace")]);
    world.end().await;
}

async fn sql_typed_by_hand_is_seen_within_the_bound(mut world: World) {
    for id in [9, 10] {
        world.at_a.get(&id).await.unwrap();
    }
    world
        .run("update users set name = 'Barbara' where id = 9; insert into users values (10, 'Donald')")
        .await;
    let written = Instant::now();
    for (id, name) in [(9, "Barbara"), (10, "Donald")] {
        loop {
            let began = Instant::now();
            let read = world.at_a.get(&id).await.unwrap();
            if name_of(&read) == Some(name) {
                break;
            }
            let late = began - written > BOUND && read.freshness == Freshness::Fresh;
            assert!(!late && began - written < SOON, "{:?} after: {read:?}", began - written);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    world.end().await;
}

async fn a_write_is_announced_and_read_back_by_its_token(mut world: World) {
    for cache in [&world.at_a, &world.at_b] {
        cache.get_many(&[7, 8]).await.unwrap();
    }
    let token = (world.rename)(7, "Ada").await.unwrap().unwrap();
    // What the trigger wrote at the commit is of the same transaction.
    for (id, name) in [(7, "Ada"), (8, "friend of Ada")] {
        // It was announced here: without it the next poll would tell.
        let read = world.at_a.get(&id).await.unwrap();
        assert_eq!((name_of(&read), read.freshness), (Some(name), Freshness::Fresh));
        let read = world.at_b.get_with(&id, ReadOptions::at_least(token)).await.unwrap();
        assert_eq!((name_of(&read), read.freshness), (Some(name), Freshness::Fresh));
    }
    let sql = "select perto.epoch(), xid::text::bigint from perto.invalidation i order by i.xid desc limit 1";
    let (epoch, xid): (i64, i64) = sqlx::query_as(sql).fetch_one(&mut world.by_hand).await.unwrap();
    assert_eq!(token.to_string(), format!("{epoch:016x}-{xid:x}"));
    assert_eq!((world.rename)(404, "Nobody").await.unwrap(), None);
    world.end().await;
}

async fn a_hint_tells_the_other_instance_of_a_write(world: World) {
    let deadline = Instant::now() + SOON;
    // One whose poll comes before the hint has nothing to evict.
    for name in ["Ada", "Lin"].into_iter().cycle() {
        world.at_b.get(&7).await.unwrap();
        (world.rename)(7, name).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        if world.b.propagation().count() > 0 {
            break;
        }
        assert!(Instant::now() < deadline, "no hint has come");
    }
    world.end().await;
}

async fn a_write_that_is_rolled_back_invalidates_nothing(mut world: World) {
    let deadline = Instant::now() + SOON;
    while world.at_b.get(&7).await.unwrap().tier != Tier::Local {
        assert!(Instant::now() < deadline, "it is never cached");
    }
    let logged = "select count(*) from perto.invalidation";
    let before: i64 = sqlx::query_scalar(logged).fetch_one(&mut world.by_hand).await.unwrap();
    // Somebody has the name already: the statement is done, and its transaction is not.
    let refused = (world.rename)(7, "Edsger").await.unwrap_err();
    assert!(format!("{refused:?}").contains("users_name_key"), "{refused:?}");
    let after: i64 = sqlx::query_scalar(logged).fetch_one(&mut world.by_hand).await.unwrap();
    assert_eq!(before, after);
    // By a poll that was sent after it.
    let read = world.at_b.get_with(&7, ReadOptions::latest()).await.unwrap();
    assert_eq!((name_of(&read), read.freshness, read.tier), (Some("Grace"), Freshness::Fresh, Tier::Local));
    // The connection is fit for the next one.
    let token = (world.rename)(7, "Ada").await.unwrap().unwrap();
    let read = world.at_b.get_with(&7, ReadOptions::at_least(token)).await.unwrap();
    assert_eq!(name_of(&read), Some("Ada"));
    world.end().await;
}

macro_rules! tests_of {
    ($module:ident, $example:ident $($awaited:tt)*) => {
        mod $module {
            use super::*;

            async fn world(test: &str) -> World {
                let database = Database::new(&format!("{}_{test}", stringify!($example))).await;
                let mut by_hand = database.options().connect().await.unwrap();
                sqlx::raw_sql(TABLES).execute(&mut by_hand).await.unwrap();
                let (url, redis_url) = (database.url(), redis_url());
                let pool = $example::pool(&url)$($awaited)*.unwrap();
                let (a, at_a) = $example::instance(&url, &redis_url, &pool).await.unwrap();
                let (b, at_b) = $example::instance(&url, &redis_url, &pool).await.unwrap();
                a.ready().await.unwrap();
                b.ready().await.unwrap();
                let perto = a.clone();
                let rename = move |id, name| -> Renaming {
                    let (perto, pool) = (perto.clone(), pool.clone());
                    Box::pin(async move { $example::rename(&perto, &pool, id, name).await })
                };
                World { a, b, at_a, at_b, rename: Box::new(rename), by_hand, database }
            }

            #[tokio::test]
            async fn the_example_reads_its_write_on_the_other_instance() {
                prints(stringify!($example), &["before: Some(\"Grace\")", "after: Some(\"Ada\")"]).await;
            }

            #[tokio::test]
            async fn rows_are_read_and_what_is_absent_is_cached_too() {
                super::rows_are_read_and_what_is_absent_is_cached_too(world("rows").await).await;
            }

            #[tokio::test]
            async fn sql_typed_by_hand_is_seen_within_the_bound() {
                super::sql_typed_by_hand_is_seen_within_the_bound(world("by_hand").await).await;
            }

            #[tokio::test]
            async fn a_write_is_announced_and_read_back_by_its_token() {
                super::a_write_is_announced_and_read_back_by_its_token(world("token").await).await;
            }

            #[tokio::test]
            async fn a_hint_tells_the_other_instance_of_a_write() {
                super::a_hint_tells_the_other_instance_of_a_write(world("hint").await).await;
            }

            #[tokio::test]
            async fn a_write_that_is_rolled_back_invalidates_nothing() {
                super::a_write_that_is_rolled_back_invalidates_nothing(world("rollback").await).await;
            }
        }
    };
}

tests_of!(by_sqlx, with_sqlx.await);
tests_of!(by_tokio_postgres, with_tokio_postgres);
tests_of!(by_diesel, with_diesel);
tests_of!(by_sea_orm, with_sea_orm.await);
