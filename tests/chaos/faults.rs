//! The faults of Redis, of the network between, and of the workers. Each is caused, held and healed, and checked to
//! have taken place: a fault that did nothing proves nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::LocalBoxFuture;
use perto::proxy::Fault as Net;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::load::update;
use crate::postgres_faults as pg;
use crate::record::{Kind, Record, now_ns};
use crate::schema_faults as schema;
use crate::stats::{AllStats, Demand, L2_FAILED, LEASE_ENDED, NEW_EPOCH, POLL_FAILED, Stats};
use crate::support::redis::PrivateRedis;
use crate::world::World;

/// What became of a fault that was caused and healed.
#[derive(Debug, Default)]
pub(crate) struct Caused {
    /// Workers that were frozen or killed.
    pub(crate) excused: Vec<u32>,
    /// For the table.
    pub(crate) note: String,
    /// What the instances must have noticed by the time that they are coherent again.
    pub(crate) demands: Vec<Demand>,
    /// Whom that is demanded of; otherwise of all that lived from its beginning to its end.
    pub(crate) demanded_of: Option<u32>,
    /// Commits must have been lost.
    pub(crate) loses: bool,
    /// Signs of the fault that were looked for while it lasted, and not there.
    pub(crate) untrue: Vec<String>,
}

impl Caused {
    pub(crate) fn noting(note: impl Into<String>) -> Self {
        Self { note: note.into(), ..Self::default() }
    }

    pub(crate) fn demanding(demands: &[Demand]) -> Self {
        Self { demands: demands.to_vec(), ..Self::default() }
    }

    /// A sign of the fault, looked for while it lasts. Without it the fault's line fails, and the run goes on.
    pub(crate) fn expect(&mut self, is_so: bool, what: impl Into<String>) {
        if !is_so {
            self.untrue.push(what.into());
        }
    }
}

pub(crate) type Causing<'a> = LocalBoxFuture<'a, anyhow::Result<Caused>>;

pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) cause: for<'a> fn(&'a mut World, Duration) -> Causing<'a>,
    /// Part of the smoke schedule.
    pub(crate) smoke: bool,
}

macro_rules! faults {
    ($($name:literal $(($mark:ident))?: $cause:path, $what:literal;)*) => {
        &[$(Fault {
            name: $name,
            what: $what,
            cause: |world, time| Box::pin($cause(world, time)),
            smoke: marked!(smoke $($mark)?),
        }),*]
    };
}

macro_rules! marked {
    (smoke smoke) => {
        true
    };
    ($mark:ident $($other:ident)?) => {
        false
    };
}
pub(crate) use {faults, marked};

pub(crate) const FAULTS: &[Fault] = faults! {
    "nothing": nothing, "no fault at all, to compare with";
    "redis-killed" (smoke): redis_killed, "Redis is killed (-9) and comes back empty";
    "redis-restored": redis_restored, "Redis is killed and comes back with an old dump";
    "redis-flushed": redis_flushed, "FLUSHALL, ten times a second";
    "redis-failed-over": redis_failed_over, "a replica that stopped replicating takes Redis's place";
    "redis-deaf": redis_deaf, "nothing that is sent reaches Redis (black hole)";
    "redis-mute": redis_mute, "nothing that Redis sends arrives (black hole)";
    "redis-slow-100ms": redis_slow, "100 ms to Redis and 100 ms back";
    "redis-slow-1s": redis_very_slow, "1 s to Redis and 1 s back";
    "redis-full": redis_full, "Redis is out of memory and evicts nothing";
    "scripts-forgotten": scripts_forgotten, "SCRIPT FLUSH, ten times a second";
    "subscriber-overrun": subscriber_overrun, "Redis disconnects subscribers whose output buffer is full";
    "messages-dropped" (smoke): messages_dropped, "no message arrives, on connections that stand";
    "postgres-killed" (smoke): pg::killed, "Postgres is killed (-9) and recovers: a new epoch";
    "postgres-promoted": pg::promoted, "the primary is killed, and a standby that misses its last commits is promoted";
    "postgres-cut": pg::cut, "every connection to Postgres is reset, and each new one";
    "postgres-black-hole": pg::black_hole, "nothing passes to Postgres nor back";
    "postgres-slow-100ms": pg::slow, "100 ms to Postgres and 100 ms back";
    "postgres-slow-700ms": pg::very_slow, "700 ms to Postgres and 700 ms back: longer than the bound";
    "pool-exhausted": pg::pool_exhausted, "another part of each program holds all connections of its pool";
    "out-of-connections": pg::out_of_connections, "somebody takes all connections of Postgres and ends those of the instances";
    "long-transaction": pg::long_transaction, "a transaction that has written stays open, and commits at last";
    "bulk-update": pg::bulk_update, "one statement updates all 100,000 rows";
    "column-retyped": schema::column_retyped, "the type of a column that loaders read is altered, ten times";
    "key-renamed" (smoke): schema::key_renamed, "a column that the key of another cache is made of has another name";
    "published": schema::published, "a publication of all tables";
    "triggers-made-anew": schema::triggers_made_anew, "the triggers are dropped, and the table is watched again, twice a second";
    "read-only": schema::read_only, "the database takes no writes for a while";
    "role-settings": schema::role_settings, "the role's settings change how texts look and how transactions run";
    "hot-key": hot_key, "1,000 writes a second to one row";
    "instance-cut": instance_cut, "one instance is cut off from both, the others are not";
    "instance-black-hole": instance_black_hole, "nothing passes between one instance and both servers";
    "instance-frozen" (smoke): instance_frozen, "one process is stopped for longer than the bound, and goes on";
    "instance-killed": instance_killed, "one process dies (-9) between commit and publish, and is replaced";
    "out-of-files": out_of_files, "one process has no file descriptor left, and its connections are reset";
    "clock-jumps": clock_jumps, "the clock of one instance jumps ahead by 5 s, its wall clock by hours";
    "both-down": both_down, "Redis and Postgres are both killed, and come back";
};

pub(crate) async fn nothing(_: &mut World, time: Duration) -> anyhow::Result<Caused> {
    sleep(time).await;
    Ok(Caused::default())
}

async fn redis_killed(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let mut caused = Caused::demanding(&[L2_FAILED]);
    world.redis.kill();
    sleep(time).await;
    caused.expect(world.stats().await?.values().all(|stats| !stats.bus_up), "a subscription stood");
    world.redis.restart_empty().await;
    Ok(caused)
}

async fn redis_restored(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let dump = world.redis.dump().await;
    sleep(time / 2).await;
    world.redis.restore(&dump).await;
    let keys = world.redis(&["DBSIZE"]).await?;
    sleep(time / 2).await;
    let mut caused = Caused::noting(format!("{keys:?} keys came back"));
    caused.expect(matches!(keys, redis::Value::Int(1..)), "no key came back");
    Ok(caused)
}

async fn redis_flushed(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    repeat(world, time, &["FLUSHALL"]).await
}

async fn scripts_forgotten(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    repeat(world, time, &["SCRIPT", "FLUSH"]).await
}

async fn repeat(world: &mut World, time: Duration, command: &[&str]) -> anyhow::Result<Caused> {
    let times = (time.as_millis() / 100).max(1);
    for _ in 0..times {
        world.redis(command).await?;
        sleep(Duration::from_millis(100)).await;
    }
    Ok(Caused::noting(format!("{times} times")))
}

async fn redis_failed_over(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let replica = PrivateRedis::start().await;
    let mut there = replica.connect().await;
    let (host, port) = ("127.0.0.1", world.redis.url().rsplit(':').next().context("a port")?.to_owned());
    redis::cmd("REPLICAOF").arg(host).arg(port).query_async::<()>(&mut there).await?;
    crate::support::wait::eventually("the replica is in step", async || {
        let info: String =
            redis::cmd("INFO").arg("replication").query_async(&mut there).await.unwrap_or_default();
        info.contains("master_link_status:up")
    })
    .await;
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").query_async::<()>(&mut there).await?;
    let keys: u64 = redis::cmd("DBSIZE").query_async(&mut there).await?;
    ensure!(keys > 0, "the replica holds nothing");
    // It grows stale.
    sleep(time / 2).await;
    world.all(|proxies| proxies.point_redis_at(&replica.url()));
    world.redis = replica;
    sleep(time / 2).await;
    let mut caused = Caused::noting(format!("{keys} keys, {:.1} s old", (time / 2).as_secs_f64()));
    let clients: String =
        redis::cmd("CLIENT").arg("LIST").arg("TYPE").arg("PUBSUB").query_async(&mut there).await?;
    caused.expect(
        clients.lines().count() >= world.workers.len(),
        "not every instance subscribes at the replica",
    );
    Ok(caused)
}

async fn redis_deaf(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    redis_net(world, time, Net::BlackHoleToServer).await
}

async fn redis_mute(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    redis_net(world, time, Net::BlackHoleToClient).await
}

async fn redis_slow(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    redis_net(world, time, Net::Delay(Duration::from_millis(100))).await
}

async fn redis_very_slow(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    redis_net(world, time, Net::Delay(Duration::from_secs(1))).await
}

async fn redis_net(world: &mut World, time: Duration, fault: Net) -> anyhow::Result<Caused> {
    let mut beside = Vec::new();
    for worker in &world.workers {
        let mut connection = TcpStream::connect(worker.proxies.redis.address()).await?;
        ensure!(pong(&mut connection, Duration::from_secs(5)).await.is_some(), "no answer before the fault");
        beside.push(connection);
    }
    world.set_redis(fault);
    // On a busy machine some operations fail in any case: an answer to us tells more.
    let answers = beside.iter_mut().map(|connection| pong(connection, time));
    let (answers, ()) = tokio::join!(futures_util::future::join_all(answers), sleep(time));
    let earliest = if let Net::Delay(delay) = fault { 2 * delay } else { time };
    world.set_redis(Net::None);
    let mut caused = Caused::demanding(&[L2_FAILED]);
    for took in answers.into_iter().flatten() {
        caused.expect(took >= earliest, format!("an answer came after {took:.0?}"));
    }
    Ok(caused)
}

/// How long Redis took to answer; none where it did not, in time.
async fn pong(connection: &mut TcpStream, limit: Duration) -> Option<Duration> {
    let (began, mut answer) = (Instant::now(), [0; b"+PONG\r\n".len()]);
    connection.write_all(b"PING\r\n").await.ok()?;
    tokio::time::timeout(limit, connection.read_exact(&mut answer)).await.ok()?.ok()?;
    Some(began.elapsed())
}

async fn redis_full(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    world.redis.config("maxmemory-policy", "noeviction").await;
    world.redis.config("maxmemory", "1").await;
    let refused = world.redis(&["SET", "a", "b"]).await;
    ensure!(refused.is_err_and(|error| error.code() == Some("OOM")), "it takes writes");
    sleep(time).await;
    world.redis.config("maxmemory", "0").await;
    Ok(Caused::default())
}

async fn subscriber_overrun(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    const SAID: &str = "overcoming of output buffer limits";
    world.redis.config("client-output-buffer-limit", "pubsub 65536 0 0").await;
    let said =
        |world: &World| std::fs::read_to_string(world.redis.log()).unwrap_or_default().matches(SAID).count();
    let before = said(world);
    world.all(|proxies| proxies.bus.set(Net::BlackHoleToClient));
    // No hint: it is refused and counted. It only has to be long.
    let long = vec![b'x'; 512 << 10];
    let mut redis = world.redis.connect().await;
    for _ in 0..200 {
        redis::cmd("PUBLISH").arg("perto:chaos:bus").arg(&long).query_async::<()>(&mut redis).await?;
        if said(world) - before >= world.workers.len() {
            break;
        }
    }
    let overrun = said(world) - before;
    ensure!(overrun >= world.workers.len(), "only {overrun} subscribers were disconnected");
    world.all(|proxies| proxies.bus.set(Net::None));
    sleep(time).await;
    world.redis.config("client-output-buffer-limit", "pubsub 33554432 8388608 60").await;
    Ok(Caused::noting(format!("{overrun} disconnected")))
}

async fn messages_dropped(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    // Until what had passed before is applied.
    const UNDER_WAY: Duration = Duration::from_millis(300);
    let mut caused = Caused::default();
    world.all(|proxies| proxies.bus.set(Net::DropMessages));
    sleep(UNDER_WAY).await;
    let before = world.stats().await?;
    sleep(time.saturating_sub(UNDER_WAY)).await;
    let after = world.stats().await?;
    let sum = |of: &AllStats, number: fn(&Stats) -> u64| of.values().map(number).sum::<u64>();
    let published = sum(&after, |stats| stats.hints_published) - sum(&before, |stats| stats.hints_published);
    let arrived = sum(&after, |stats| stats.hints) - sum(&before, |stats| stats.hints);
    caused.expect(published > 0, "no hint was published");
    caused.expect(arrived == 0, format!("{arrived} hints arrived"));
    caused.expect(after.values().all(|stats| stats.bus_up), "a subscription broke");
    world.all(|proxies| proxies.bus.set(Net::None));
    caused.note = format!("{published} hints published, {arrived} arrived");
    Ok(caused)
}

/// Each instance announces some of them; most are SQL by others, who do not.
async fn hot_key(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    const KEY: u32 = 7;
    const CLIENTS: u32 = 4;
    for worker in &mut world.workers {
        worker.ask(&format!("burst {KEY} 30 {}", time.as_millis())).await?;
    }
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let (connection, first) = (world.connect().await?, world.values(1 << 20));
        clients.push(write_on(connection, KEY, first, time));
    }
    let before = world.version(KEY).await?;
    let began = Instant::now();
    let written = futures_util::future::try_join_all(clients).await?;
    world.writes.extend(written.into_iter().flatten());
    let versions = world.version(KEY).await? - before;
    let rate = f64::from(versions) / began.elapsed().as_secs_f64();
    let mut caused = Caused::noting(format!("{rate:.0} a second"));
    caused.expect(rate >= 100.0, "the row was written less than 100 times a second");
    Ok(caused)
}

/// One client, 250 times a second.
async fn write_on(
    mut connection: sqlx::PgConnection,
    key: u32,
    first: u64,
    time: Duration,
) -> anyhow::Result<Vec<Record>> {
    let (mut ticks, began) = (tokio::time::interval(Duration::from_millis(4)), Instant::now());
    let mut written = Vec::new();
    while began.elapsed() < time {
        ticks.tick().await;
        let (begun, value) = (now_ns(), first + written.len() as u64);
        let (version, timeline) = update(&mut connection, key, value).await?;
        let record = Record::new(Kind::Committed, key, begun);
        written.push(Record { version, value, timeline, ended: now_ns(), ..record });
    }
    Ok(written)
}

async fn instance_cut(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    instance_net(world, time, Net::Cut).await
}

async fn instance_black_hole(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    instance_net(world, time, Net::BlackHole).await
}

async fn instance_net(world: &mut World, time: Duration, fault: Net) -> anyhow::Result<Caused> {
    let (proxies, number) = (&world.workers[0].proxies, world.workers[0].number);
    proxies.set_redis(fault);
    proxies.postgres.set(fault);
    sleep(time).await;
    proxies.heal();
    Ok(Caused { demanded_of: Some(number), ..Caused::demanding(&[L2_FAILED, POLL_FAILED]) })
}

async fn instance_frozen(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let worker = &world.workers[0];
    worker.freeze()?;
    sleep(Duration::from_millis(50)).await;
    let mut caused = Caused { excused: vec![worker.number], ..Caused::default() };
    let at_first = worker.is_frozen();
    sleep(time.max(world.pace.bound * 2)).await;
    caused.expect(at_first && worker.is_frozen(), "the process ran");
    worker.thaw()?;
    Ok(caused)
}

async fn instance_killed(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let mut dead = world.workers.remove(0);
    dead.commit_and_die().await?;
    sleep(time / 2).await;
    world.start_worker(std::sync::Arc::clone(&dead.proxies)).await?;
    sleep(time / 2).await;
    Ok(Caused { excused: vec![dead.number, world.next_worker - 1], ..Caused::default() })
}

async fn out_of_files(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let worker = &mut world.workers[0];
    let number = worker.number;
    worker.proxies.set_redis(Net::Cut);
    worker.proxies.postgres.set(Net::Cut);
    let taken = worker.ask(&format!("exhaust-files {}", time.as_millis())).await?;
    worker.proxies.heal();
    sleep(time + Duration::from_millis(50)).await;
    let (note, demands) = (format!("{taken} files taken"), vec![POLL_FAILED]);
    Ok(Caused { note, demands, demanded_of: Some(number), ..Caused::default() })
}

async fn clock_jumps(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let hour = 3_600_000;
    let jumps = [hour, -2 * hour, 3 * hour, -2 * hour];
    let worker = &mut world.workers[0];
    let mut caused = Caused::noting(format!("{} jumps", jumps.len()));
    // The lease is over at once.
    caused.demands = vec![LEASE_ENDED];
    caused.demanded_of = Some(worker.number);
    let mut ahead = None;
    for wall in jumps {
        let is_ahead: i64 = worker.ask("clock 5000").await?.parse()?;
        // Its first answer may be of earlier jumps too.
        let jumped = is_ahead - ahead.replace(is_ahead).unwrap_or(is_ahead - 5_000);
        let wall_jumped: i64 = worker.ask(&format!("wall {wall}")).await?.parse()?;
        let near = |is: i64, meant: i64| (is - meant).abs() < 1_000;
        caused.expect(
            is_ahead >= 5_000 && near(jumped, 5_000) && near(wall_jumped, wall),
            format!("the clock jumped by {jumped} ms, the wall clock by {wall_jumped} ms"),
        );
        sleep(time / 4).await;
    }
    Ok(caused)
}

async fn both_down(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    world.redis.kill();
    world.postgres.kill();
    sleep(time).await;
    let mut caused = Caused::demanding(&[L2_FAILED, POLL_FAILED, NEW_EPOCH]);
    caused.expect(world.stats().await?.values().all(|stats| !stats.bus_up), "a subscription stood");
    world.postgres.restart().await;
    world.redis.restart_empty().await;
    Ok(caused)
}
