//! Three instances on servers of their own, and what each of them takes.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use perto::proxy::FaultProxy;
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::client::{Client, Who};
use crate::command::{ADMIN_KEY, Database, Served, key_of, perto, seeded};
use crate::support::engines::place_of;
use crate::support::hostile::resident;
use crate::support::redis::PrivateRedis;
use crate::support::servers::Folder;
use crate::support::wait::eventually;

pub(crate) const INSTANCES: usize = 3;

pub(crate) struct World {
    pub(crate) redis: PrivateRedis,
    /// Between the instances and Redis.
    pub(crate) proxy: FaultProxy,
    pub(crate) database: Database,
    pub(crate) instances: Vec<Instance>,
    pub(crate) quiet_key: String,
    /// Of company 2.
    pub(crate) hostile_key: String,
    _folder: Folder,
}

pub(crate) struct Instance {
    served: Served,
    log: PathBuf,
}

/// What an instance has done and takes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Use {
    pub(crate) polls: u64,
    pub(crate) log_lines: u64,
}

impl World {
    pub(crate) async fn begin() -> Self {
        let redis = PrivateRedis::start().await;
        // One that may say as much as it likes.
        redis.config("client-output-buffer-limit", "pubsub 0 0 0").await;
        let proxy = FaultProxy::start(place_of(&redis.url())).await.unwrap();
        let url = format!("redis://{}", proxy.address());
        let (database, folder) = (seeded(), Folder::new("attack"));
        let instances: Vec<Instance> = (0..INSTANCES)
            .map(|at| {
                let log = folder.0.join(format!("{at}.log"));
                let arguments = ["--admin-key", ADMIN_KEY];
                let to = Stdio::from(File::create(&log).unwrap());
                let name = format!("attacked{at}");
                let served = Served::start_saying(perto(&database.url, &url), &name, &arguments, to);
                Instance { served, log }
            })
            .collect();
        let (quiet_key, hostile_key) = (key_of(&database, 1), key_of(&database, 2));
        let world = Self { redis, proxy, database, instances, quiet_key, hostile_key, _folder: folder };
        for instance in &world.instances {
            eventually("an instance is coherent", async || instance.is_coherent().await).await;
        }
        world
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.instances.iter().map(|instance| instance.served.address.clone()).collect()
    }

    /// Has each instance do once, for one contact, what it prepares at first use and keeps: what phone numbers are in each country.
    /// That is no memory of an attack.
    pub(crate) async fn use_once(&self) {
        let who = Who { from: Ipv4Addr::LOCALHOST, key: Some(self.hostile_key.clone()) };
        let contact = br#"[{"phone":"+351912345678","email":"one@example.com"}]"#;
        for address in self.addresses() {
            let mut client = Client::new(&address, &who);
            let contacts = "/api/v1/companies/2/contacts";
            let asked: [(&str, &[u8]); 2] = [("validate", contact), ("preload", br#"{"limit":1}"#)];
            for (what, body) in asked {
                let answer = client.send("POST", &format!("{contacts}/{what}"), "", body).await.unwrap();
                assert_eq!(answer.status, 200, "{what}: {}", String::from_utf8_lossy(&answer.body));
            }
        }
    }

    /// Past the proxy, and with time for what is large.
    pub(crate) async fn redis(&self) -> MultiplexedConnection {
        let limit = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(30)));
        let client = redis::Client::open(self.redis.url()).unwrap();
        client.get_multiplexed_async_connection_with_config(&limit).await.unwrap()
    }

    pub(crate) async fn sql(&self, sql: &str) {
        let mut connection = PgConnection::connect(&self.database.url).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }

    /// The epoch, and the newest transaction, as anybody learns them who is answered once: from a token.
    pub(crate) async fn newest(&self) -> (u64, u64) {
        let who = Who { from: Ipv4Addr::LOCALHOST, key: Some(self.hostile_key.clone()) };
        let mut client = Client::new(&self.addresses()[0], &who);
        let body = br#"{"name":"of the hostile tenant"}"#;
        let answer = client.send("PATCH", "/api/v1/companies/2", "", body).await.unwrap();
        let token = answer.header("perto-token").unwrap().to_owned();
        let (epoch, xid) = token.split_once('-').unwrap();
        (u64::from_str_radix(epoch, 16).unwrap(), u64::from_str_radix(xid, 16).unwrap())
    }

    pub(crate) async fn epoch(&self) -> u64 {
        self.newest().await.0
    }

    pub(crate) async fn uses(&self) -> Vec<Use> {
        let mut uses = Vec::new();
        for instance in &self.instances {
            uses.push(Use { polls: instance.polls().await, log_lines: instance.log_lines() });
        }
        uses
    }

    /// Of the instance that has the most.
    pub(crate) fn resident(&self) -> u64 {
        self.instances.iter().map(|instance| resident(instance.served.id())).max().unwrap_or_default()
    }
}

impl Instance {
    async fn is_coherent(&self) -> bool {
        let who = Who { from: Ipv4Addr::LOCALHOST, key: None };
        let answer = Client::new(&self.served.address, &who).get("/readyz").await;
        answer.is_ok_and(|answer| answer.status == 200 && answer.body.windows(8).any(|at| at == b"coherent"))
    }

    async fn polls(&self) -> u64 {
        let who = Who { from: Ipv4Addr::LOCALHOST, key: None };
        let answer = Client::new(&self.served.address, &who).get("/metrics").await.unwrap();
        let text = String::from_utf8(answer.body).unwrap();
        let polls =
            |line: &str| line.strip_prefix("perto_polls_total{")?.rsplit_once(' ')?.1.parse::<f64>().ok();
        let polls: f64 = text.lines().filter_map(polls).sum();
        assert!(polls > 0.0, "no polls in: {text}");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a counter")]
        let polls = polls as u64;
        polls
    }

    fn log_lines(&self) -> u64 {
        BufReader::new(File::open(&self.log).unwrap()).lines().count() as u64
    }

    /// The last lines of its log.
    pub(crate) fn last_words(&self) -> String {
        let lines: Vec<String> =
            BufReader::new(File::open(&self.log).unwrap()).lines().map_while(Result::ok).collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}
