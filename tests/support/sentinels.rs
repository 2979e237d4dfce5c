//! A private Redis or Valkey with a replica, and three Sentinels that watch them.

use std::fs::File;
use std::process::Command;

use redis::aio::MultiplexedConnection;

use super::engines::{redis_at, unique_name};
use super::redis::{PrivateRedis, program, secured};
use super::servers::{Files, Folder, Process, free_port};
use super::wait::eventually;

/// How long it may be silent before they replace it. Longer than a busy machine keeps a process waiting.
const DOWN_AFTER_MS: u32 = 1_000;

pub(crate) struct Watched {
    pub(crate) servers: Vec<PrivateRedis>,
    pub(crate) sentinels: Vec<Sentinel>,
    /// What the Sentinels call it. No others do: they would take these for their own.
    name: String,
    password: Option<&'static str>,
}

impl Watched {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    /// With a password that the Sentinels want.
    pub(crate) async fn start_with(password: Option<&'static str>) -> Self {
        let master = PrivateRedis::start().await;
        let replica = PrivateRedis::start_replica(&master).await;
        let name = unique_name();
        let sentinel = |_| Sentinel::new(&name, master.port(), password, None, &[]);
        let sentinels = (0..3).map(sentinel).collect();
        Self::watch(vec![master, replica], sentinels, name, password).await
    }

    /// All of them by TLS: clients, Sentinels and servers among each other.
    pub(crate) async fn start_secured(files: &Files) -> Self {
        let master = PrivateRedis::start_secured(files, None).await;
        let replica = PrivateRedis::start_secured(files, Some(&master)).await;
        let name = unique_name();
        let sentinel = |_| {
            let port = free_port();
            let settings: Vec<String> = secured(files, port)
                .chunks(2)
                .map(|pair| format!("{} {}", pair[0].trim_start_matches('-'), pair[1]))
                .chain(["tls-replication yes".to_owned()])
                .collect();
            Sentinel::new(&name, master.known_port(), None, Some(port), &settings)
        };
        let sentinels = (0..3).map(sentinel).collect();
        Self::watch(vec![master, replica], sentinels, name, None).await
    }

    async fn watch(
        servers: Vec<PrivateRedis>,
        mut sentinels: Vec<Sentinel>,
        name: String,
        password: Option<&'static str>,
    ) -> Self {
        for sentinel in &mut sentinels {
            sentinel.start().await;
        }
        let watched = Self { servers, sentinels, name, password };
        eventually("the Sentinels know the replica and each other", async || {
            for sentinel in &watched.sentinels {
                let known = sentinel.says("MASTER").await;
                let says = |what: &str, count: &str| known.windows(2).any(|pair| pair == [what, count]);
                if !(says("num-slaves", "1") && says("num-other-sentinels", "2")) {
                    return false;
                }
            }
            true
        })
        .await;
        watched
    }

    pub(crate) fn url(&self) -> String {
        let places: Vec<String> = self
            .sentinels
            .iter()
            .map(|sentinel| format!("127.0.0.1:{}", sentinel.secured.unwrap_or(sentinel.port)))
            .collect();
        let login = self.password.map_or(String::new(), |password| format!("?sentinel_password={password}"));
        format!("redis+sentinel://{}/{}{login}", places.join(","), self.name)
    }

    /// The port of the server that most Sentinels name.
    pub(crate) async fn named(&self) -> Option<u16> {
        let mut named = Vec::new();
        for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.runs) {
            named.extend(sentinel.names().await);
        }
        named.iter().copied().find(|port| named.iter().filter(|other| *other == port).count() >= 2)
    }

    /// Has the replica take over though the server is well, by one of the Sentinels.
    pub(crate) async fn fail_over(&self, by: usize) {
        self.fail_over_to(1, by).await;
    }

    /// The same, whichever of the servers is the replica.
    pub(crate) async fn fail_over_to(&self, replica: usize, by: usize) {
        let promoted = self.servers[replica].known_port();
        eventually("the Sentinels name the other one", async || {
            let sentinel = &self.sentinels[by];
            if sentinel.names().await != Some(promoted) {
                // It refuses while one is under way. And what it has begun it may give up, and has to be told again.
                let mut fail_over = redis::cmd("SENTINEL");
                fail_over.arg("FAILOVER").arg(&self.name);
                drop(fail_over.query_async::<redis::Value>(&mut sentinel.connect().await).await);
            }
            self.named().await == Some(promoted)
        })
        .await;
    }
}

pub(crate) struct Sentinel {
    process: Process,
    port: u16,
    /// Another port, for TLS.
    secured: Option<u16>,
    folder: Folder,
    name: String,
    password: Option<&'static str>,
    runs: bool,
}

impl Sentinel {
    fn new(
        name: &str,
        server: u16,
        password: Option<&'static str>,
        secured: Option<u16>,
        others: &[String],
    ) -> Self {
        let (folder, port) = (Folder::new("sentinel"), free_port());
        let login = password.map_or(String::new(), |password| {
            format!("requirepass {password}\nsentinel sentinel-pass {password}\n")
        });
        let settings = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\n{}\n{login}sentinel monitor {name} 127.0.0.1 {server} 2\n\
             sentinel down-after-milliseconds {name} {DOWN_AFTER_MS}\nsentinel failover-timeout {name} 3000\n",
            folder.0.display(),
            others.join("\n")
        );
        std::fs::write(folder.0.join("sentinel.conf"), settings).unwrap();
        Self { process: Process::none(), port, secured, folder, name: name.to_owned(), password, runs: false }
    }

    /// With what it knew when it ended.
    pub(crate) async fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.folder.0.join("log")).unwrap();
        let mut command = Command::new(program());
        command.arg(self.folder.0.join("sentinel.conf")).arg("--sentinel");
        self.process = Process::spawn(command.stdout(log.try_clone().unwrap()).stderr(log));
        self.runs = true;
        eventually("a Sentinel answers", async || {
            assert!(!self.process.has_ended(), "{command:?} ended");
            let Ok(client) = redis::Client::open(self.url()) else { return false };
            client.get_multiplexed_async_connection().await.is_ok()
        })
        .await;
        // They learn from each other every two seconds, and of replicas every ten: tests would wait for that. Old ones do.
        self.looks_every(200).await;
    }

    /// How often it asks servers what they are. It demotes one by that which is no master any more.
    pub(crate) async fn looks_every(&self, ms: u32) {
        let mut debug = redis::cmd("SENTINEL");
        debug.arg("DEBUG");
        for period in ["info-period", "publish-period", "ask-period"] {
            debug.arg(period).arg(ms);
        }
        // By pings it judges which replica will do. And whoever was kept waiting by a busy machine would do nothing for 30 s.
        debug.arg("ping-period").arg(500).arg("tilt-trigger").arg(60_000);
        drop(debug.query_async::<redis::Value>(&mut self.connect().await).await);
    }

    pub(crate) fn kill(&mut self) {
        self.runs = false;
        self.process.kill();
    }

    pub(crate) fn hold(&mut self) {
        self.runs = false;
        self.process.hold();
    }

    pub(crate) async fn connect(&self) -> MultiplexedConnection {
        redis_at(&self.url()).await
    }

    fn url(&self) -> String {
        let login = self.password.map_or(String::new(), |password| format!(":{password}@"));
        format!("redis://{login}127.0.0.1:{}", self.port)
    }

    /// The port of the server that it names.
    async fn names(&self) -> Option<u16> {
        self.says("GET-MASTER-ADDR-BY-NAME").await.get(1)?.parse().ok()
    }

    /// What it answers to a question of what it watches.
    async fn says(&self, question: &str) -> Vec<String> {
        let mut ask = redis::cmd("SENTINEL");
        ask.arg(question).arg(&self.name).query_async(&mut self.connect().await).await.unwrap_or_default()
    }
}
