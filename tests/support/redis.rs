//! A private Redis or Valkey, to kill, restart, fill up and restore.

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use redis::aio::MultiplexedConnection;

use super::engines::redis_at;
use super::servers::{Files, Folder, Process, free_port, on_path};
use super::wait::eventually;

pub(crate) struct PrivateRedis {
    process: Process,
    port: u16,
    folder: Folder,
    cluster: bool,
    /// The port of the server that it is a replica of.
    replica_of: Option<u16>,
    /// Another port, for TLS.
    secured: Option<u16>,
    settings: Vec<String>,
}

impl PrivateRedis {
    /// An empty server on a free port.
    pub(crate) async fn start() -> Self {
        let mut server = Self::stopped();
        server.restart_empty().await;
        server
    }

    /// A node of a cluster that has no other.
    pub(crate) async fn start_cluster_node() -> Self {
        Self::start_cluster_node_with(&[]).await
    }

    /// The same with settings.
    pub(crate) async fn start_cluster_node_with(settings: &[String]) -> Self {
        // Nodes talk to each other on a port that is so much higher.
        let port = std::iter::repeat_with(free_port)
            .find(|port| *port < 55_000 && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok());
        let mut server =
            Self { cluster: true, port: port.unwrap(), settings: settings.to_vec(), ..Self::stopped() };
        server.restart_empty().await;
        server
    }

    /// A replica of another one, that may take its place.
    pub(crate) async fn start_replica(of: &Self) -> Self {
        let mut server = Self { replica_of: Some(of.port), ..Self::stopped() };
        server.restart_empty().await;
        server
    }

    /// One that can be reached by a Unix socket too.
    pub(crate) async fn start_with_a_socket() -> Self {
        let mut server = Self::stopped();
        server.settings = vec!["--unixsocket".to_owned(), server.socket().to_str().unwrap().to_owned()];
        server.restart_empty().await;
        server
    }

    fn socket(&self) -> PathBuf {
        self.folder.0.join("socket")
    }

    pub(crate) fn socket_url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// Whether it was built with TLS: what comes by pip is not.
    pub(crate) fn has_tls() -> bool {
        let setting = b"tls-auth-clients";
        let program = std::fs::read(program()).unwrap();
        program.windows(setting.len()).any(|bytes| bytes == setting)
    }

    /// One that also listens for TLS, lets nobody in who is not certified, and speaks so to its replicas.
    pub(crate) async fn start_secured(files: &Files, of: Option<&Self>) -> Self {
        let port = free_port();
        let mut settings = secured(files, port);
        settings.extend(["--tls-replication", "yes"].map(str::to_owned));
        let mut server = Self { replica_of: of.map(Self::known_port), settings, ..Self::stopped() };
        server.secured = Some(port);
        server.restart_empty().await;
        server
    }

    /// The port by which others know it.
    pub(crate) fn known_port(&self) -> u16 {
        self.secured.unwrap_or(self.port)
    }

    /// A port on which no server listens yet.
    pub(crate) fn stopped() -> Self {
        let folder = Folder::new("redis");
        let port = free_port();
        Self {
            process: Process::none(),
            port,
            folder,
            cluster: false,
            replica_of: None,
            secured: None,
            settings: Vec::new(),
        }
    }

    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Whether it is one that may be written to.
    pub(crate) async fn is_master(&self) -> bool {
        let client = redis::Client::open(self.url()).unwrap();
        // One that has just changed its role cuts connections.
        let Ok(mut connection) = client.get_multiplexed_async_connection().await else { return false };
        let role: redis::RedisResult<Vec<redis::Value>> =
            redis::cmd("ROLE").query_async(&mut connection).await;
        role.is_ok_and(|role| role.first() == Some(&redis::Value::BulkString(b"master".to_vec())))
    }

    pub(crate) async fn connect(&self) -> MultiplexedConnection {
        redis_at(&self.url()).await
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Lets it do nothing more, while its connections stay open.
    pub(crate) fn hold(&self) {
        self.process.hold();
    }

    pub(crate) fn let_go_on(&self) {
        self.process.let_go_on();
    }

    /// Starts it again on its port, with nothing in it.
    pub(crate) async fn restart_empty(&mut self) {
        drop(std::fs::remove_file(self.dump_file()));
        self.restart().await;
    }

    /// Kills it and starts it again on its port, with what was in the dump.
    pub(crate) async fn restore(&mut self, dump: &[u8]) {
        self.kill();
        std::fs::write(self.dump_file(), dump).unwrap();
        self.restart().await;
    }

    /// All that it holds now, as a file to restore from.
    pub(crate) async fn dump(&self) -> Vec<u8> {
        redis::cmd("SAVE").query_async::<()>(&mut self.connect().await).await.unwrap();
        std::fs::read(self.dump_file()).unwrap()
    }

    pub(crate) async fn config(&self, setting: &str, value: &str) {
        let mut config = redis::cmd("CONFIG");
        config.arg("SET").arg(setting).arg(value).query_async::<()>(&mut self.connect().await).await.unwrap();
    }

    async fn restart(&mut self) {
        self.kill();
        let mut command = Command::new(program());
        command
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port"])
            .arg(self.port.to_string());
        command.arg("--cluster-enabled").arg(if self.cluster { "yes" } else { "no" });
        if let Some(master) = self.replica_of {
            command
                .args(["--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1"])
                .arg(master.to_string());
        }
        command.args(&self.settings);
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        command.arg("--dir").arg(&self.folder.0).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Process::spawn(&mut command);
        let client = redis::Client::open(self.url()).unwrap();
        eventually("a private Redis answers", async || {
            assert!(!self.process.has_ended(), "{command:?} ended");
            let Ok(mut redis) = client.get_multiplexed_async_connection().await else { return false };
            redis::cmd("PING").query_async::<String>(&mut redis).await.is_ok()
        })
        .await;
    }

    /// What it has said since it was made.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.0.join("log")
    }

    fn dump_file(&self) -> PathBuf {
        self.folder.0.join("dump.rdb")
    }
}

/// What makes a server or a Sentinel listen for TLS on this port.
pub(crate) fn secured(files: &Files, port: u16) -> Vec<String> {
    let [ca, certificate, key] = ["ca.pem", "server.pem", "server.key"].map(|name| files.path(name));
    let port = port.to_string();
    let settings = [
        "--tls-port",
        &port,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "yes",
    ];
    settings.map(str::to_owned).to_vec()
}

pub(crate) fn program() -> PathBuf {
    std::env::var_os("PERTO_REDIS_SERVER")
        .map(PathBuf::from)
        .or_else(|| on_path("redis-server"))
        .or_else(|| on_path("valkey-server"))
        .expect("no redis-server and no valkey-server on PATH, and PERTO_REDIS_SERVER is not set")
}
