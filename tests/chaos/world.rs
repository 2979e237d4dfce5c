//! The servers of a run, the workers before them, and what the schedule itself writes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use perto::postgres::{Watch, migrate, watch};
use perto::proxy::{Fault, FaultProxy};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::On;
use crate::fleet::{Pace, Proxies, Servers, Worker};
use crate::hand::Hand;
use crate::load::{HOT, RESERVED, ROWS};
use crate::record::{Kind, Record, now_ns};
use crate::stats::AllStats;
use crate::support::cluster::PrivateCluster;
use crate::support::engines::place_of;
use crate::support::postgres::PrivatePostgres;
use crate::support::redis::PrivateRedis;
use crate::support::sentinels::Watched;

/// Written by [`World::probe`] and by nobody else.
const PROBED: u32 = HOT + RESERVED - 1;

/// Where Redis is no one server.
pub(crate) enum Topology {
    None,
    Watched(Watched),
    Cluster(PrivateCluster),
}

impl Topology {
    async fn start(on: On) -> Self {
        match on {
            On::One => Self::None,
            On::Sentinel => Self::Watched(Watched::start().await),
            On::Cluster => Self::Cluster(PrivateCluster::start().await),
        }
    }

    fn url(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Watched(watched) => Some(watched.url()),
            Self::Cluster(cluster) => Some(cluster.url()),
        }
    }
}

pub(crate) struct World {
    pub(crate) folder: PathBuf,
    pub(crate) pace: Pace,
    /// Of which instances make no use where there is a topology.
    pub(crate) redis: PrivateRedis,
    pub(crate) topology: Topology,
    pub(crate) postgres: PrivatePostgres,
    /// Streams from the primary through a proxy.
    pub(crate) standby: Option<(PrivatePostgres, FaultProxy)>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) hand: Option<Hand>,
    /// What the schedule has written, and what was taken back.
    pub(crate) writes: Vec<Record>,
    /// The number of every worker there ever was is below.
    pub(crate) next_worker: u32,
    /// Of the histories of reads that are being written.
    pub(crate) part: String,
    next_value: u64,
}

impl World {
    pub(crate) async fn start(folder: &Path, pace: Pace, workers: u32, on: On) -> anyhow::Result<Self> {
        let (redis, postgres, topology) =
            tokio::join!(PrivateRedis::start(), PrivatePostgres::start(), Topology::start(on));
        let mut world = Self {
            folder: folder.to_owned(),
            pace,
            redis,
            topology,
            postgres,
            standby: None,
            workers: Vec::new(),
            hand: None,
            writes: Vec::new(),
            next_worker: 1,
            part: "start".to_owned(),
            next_value: 1 << 32,
        };
        let mut connection = world.connect().await?;
        migrate(&mut connection, "chaos").await?;
        let create = format!(
            "create table chaos.rows (id bigint primary key, version bigint not null, value bigint not null, note varchar(20)) \
               with (fillfactor = 50); \
             insert into chaos.rows select n, 0, n, null from generate_series(0, {}) n; analyze chaos.rows",
            ROWS - 1
        );
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut connection).await?;
        let rows = Watch {
            schema: "chaos".to_owned(),
            table: "chaos.rows".to_owned(),
            cache: "row".to_owned(),
            key: "id".to_owned(),
            columns: Vec::new(),
        };
        watch(&mut connection, &rows).await?;
        world.hand = Some(Hand::start(world.url()));
        for _ in 0..workers {
            let proxies = Proxies::start(&world.redis.url(), &world.url()).await?;
            world.start_worker(Arc::new(proxies)).await?;
        }
        Ok(world)
    }

    pub(crate) async fn start_worker(&mut self, proxies: Arc<Proxies>) -> anyhow::Result<()> {
        let number = self.next_worker;
        self.next_worker += 1;
        let (redis, postgres, topology) = (self.redis.url(), self.url(), self.topology.url());
        let servers = Servers { redis: &redis, topology: topology.as_deref(), postgres: &postgres };
        let worker = Worker::start(number, proxies, &self.folder, &self.part, self.pace, &servers).await?;
        self.workers.push(worker);
        Ok(())
    }

    /// Ends the file of each worker's reads, and begins the next.
    pub(crate) async fn cut(&mut self, part: &str) -> anyhow::Result<()> {
        part.clone_into(&mut self.part);
        for worker in &mut self.workers {
            worker.ask(&format!("cut {part}")).await?;
        }
        Ok(())
    }

    /// What the instances have counted.
    pub(crate) async fn stats(&mut self) -> anyhow::Result<AllStats> {
        let mut all = AllStats::new();
        for worker in &mut self.workers {
            all.insert(worker.number, worker.stats().await?);
        }
        Ok(all)
    }

    pub(crate) fn url(&self) -> String {
        self.postgres.url("postgres")
    }

    /// Straight to the primary, past all proxies.
    pub(crate) async fn connect(&self) -> anyhow::Result<PgConnection> {
        let connecting = PgConnection::connect(&self.url()).await;
        let mut connection = connecting.context("the primary")?;
        sqlx::raw_sql("set search_path = chaos").execute(&mut connection).await?;
        Ok(connection)
    }

    pub(crate) async fn redis(&self, command: &[&str]) -> redis::RedisResult<redis::Value> {
        let mut sent = redis::cmd(command[0]);
        sent.arg(&command[1..]).query_async(&mut self.redis.connect().await).await
    }

    pub(crate) fn all(&self, fault: impl Fn(&Proxies)) {
        self.workers.iter().for_each(|worker| fault(&worker.proxies));
    }

    pub(crate) fn set_redis(&self, fault: Fault) {
        self.all(|proxies| proxies.set_redis(fault));
    }

    pub(crate) fn set_postgres(&self, fault: Fault) {
        self.all(|proxies| proxies.postgres.set(fault));
    }

    /// A standby, where there is none yet. It streams, but nothing has to wait for it.
    pub(crate) async fn with_standby(&mut self) -> anyhow::Result<()> {
        if self.standby.is_none() {
            let link = FaultProxy::start(place_of(&self.url())).await?;
            let standby = self.postgres.standby_through(link.address().port()).await;
            self.standby = Some((standby, link));
        }
        Ok(())
    }

    /// Values for so many rows.
    pub(crate) fn values(&mut self, count: u32) -> u64 {
        let first = self.next_value;
        self.next_value += u64::from(count);
        first
    }

    /// All that was written past the workers.
    pub(crate) fn all_writes(&self) -> Vec<Record> {
        let mut writes = self.writes.clone();
        writes.extend(self.hand.iter().flat_map(Hand::writes));
        writes
    }

    /// Writes one of the reserved rows in a transaction of its own.
    pub(crate) async fn write(&mut self, connection: &mut PgConnection, key: u32) -> anyhow::Result<u64> {
        let value = self.values(1);
        let begun = now_ns();
        let (version, timeline) = crate::load::update(connection, key, value).await?;
        let record = Record::new(Kind::Committed, key, begun);
        self.writes.push(Record { version, value, timeline, ended: now_ns(), ..record });
        Ok(value)
    }

    pub(crate) async fn version(&self, key: u32) -> anyhow::Result<u32> {
        let version = sqlx::query_scalar("select version::int from rows where id = $1");
        let version: i32 = version.bind(i64::from(key)).fetch_one(&mut self.connect().await?).await?;
        Ok(u32::try_from(version)?)
    }

    /// Which programs these are.
    pub(crate) async fn programs(&self) -> anyhow::Result<String> {
        let info: String =
            redis::cmd("INFO").arg("server").query_async(&mut self.redis.connect().await).await?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let cache = match field("valkey_version:") {
            Some(version) => format!("Valkey {version}"),
            None => format!("Redis {}", field("redis_version:").unwrap_or("?")),
        };
        let version: String =
            sqlx::query_scalar("show server_version").fetch_one(&mut self.connect().await?).await?;
        let version = version.split(' ').next().unwrap_or_default();
        let run = match self.topology {
            Topology::None => "",
            Topology::Watched(_) => " behind three Sentinels, with a replica",
            Topology::Cluster(_) => " in a cluster of three nodes and their replicas",
        };
        Ok(format!("{cache}{run}, Postgres {version}, {} instances", self.workers.len()))
    }

    /// A write by hand, and when the last worker showed it as fresh, after how long.
    pub(crate) async fn probe(&mut self, limit: Duration) -> anyhow::Result<Duration> {
        let mut connection = self.connect().await?;
        let value = self.write(&mut connection, PROBED).await?;
        let written = now_ns();
        let mut last = written;
        for worker in &mut self.workers {
            let seen = worker.ask(&format!("see {PROBED} {value} {}", limit.as_millis())).await?;
            last = last.max(seen.parse()?);
        }
        Ok(Duration::from_nanos(last - written))
    }

    /// Makes the standby the primary, after the old one is dead, and takes note of what was lost.
    pub(crate) async fn promote(&mut self) -> anyhow::Result<u64> {
        let (standby, _link) = self.standby.take().context("a standby")?;
        let before = std::mem::replace(&mut self.postgres, standby);
        let mut connection = self.connect().await?;
        let promoted: bool =
            sqlx::query_scalar("select pg_promote(true, 20)").fetch_one(&mut connection).await?;
        ensure!(promoted, "the standby was not promoted within 20 s");
        // Nobody has written to it yet.
        let rows: Vec<(i64, i64, i64, i32)> = sqlx::query_as(
            "select id, version, value, \
               ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int from rows",
        )
        .fetch_all(&mut connection)
        .await?;
        let begun = now_ns();
        self.all(|proxies| proxies.postgres.point_at(place_of(&self.postgres.url("postgres"))));
        // From now on no worker reaches the old one, and what it alone had is gone. Told as writes of what was before:
        // the verdict leaves out those that took nothing back.
        let at = now_ns();
        if let Some(hand) = &self.hand {
            hand.follow(self.url());
        }
        tokio::task::spawn_blocking(move || drop(before)).await?;
        for (id, version, value, timeline) in rows {
            let record = Record::new(Kind::Rewound, u32::try_from(id)?, begun);
            let (version, value) = (version.cast_unsigned(), value.cast_unsigned());
            self.writes.push(Record {
                version,
                value,
                timeline: timeline.cast_unsigned(),
                ended: at,
                ..record
            });
        }
        Ok(at)
    }
}
