//! Where a Redis server is, and how it is spoken to.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use futures_util::FutureExt as _;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, RedisResult};

use super::credentials::{Asked, Credentials};
#[cfg(feature = "tls")]
use super::tls::Tls;
use crate::error::StartError;
use crate::url::{ENCODE, is_cut};

/// Where Sentinels listen, unless the URL says otherwise.
const SENTINEL_PORT: u16 = 26_379;
const OF_TLS: [&str; 4] = ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_host"];

/// A server, the user, and whom to trust: a URL that makes sense.
///
/// | URL | |
/// | --- | --- |
/// | `redis://[user[:password]@]host[:6379][/database]` | by TCP; `valkey://` is the same |
/// | `rediss://…`, `valkeys://…` | by TLS, with the feature `tls` |
/// | `redis+unix:///path[?db=&user=&pass=]` | by a Unix socket; `valkey+unix:` and `unix:` are the same |
/// | `redis+cluster://[user[:password]@]host[:6379][,host…]` | a cluster, by any of its nodes; `rediss+cluster://…` by TLS |
/// | `redis+sentinel://[user[:password]@]host[:26379][,host…]/name[/database]` | the server that Sentinels name, wherever it moves to; `rediss+sentinel://…` by TLS, to the Sentinels too |
///
/// A `-` in place of the `+` is the same.
///
/// With TLS, parameters say whom to trust, and who we are. Their files are PEM, and read at each connection: replaced ones are
/// used from the next one on.
///
/// | Parameter | |
/// | --- | --- |
/// | `ssl_ca_certs` | a file of certificates that are trusted, instead of those that the machine trusts |
/// | `ssl_certfile`, `ssl_keyfile` | our certificate with what leads to it, and its key, where the server asks for them |
/// | `ssl_host` | the name that the server's certificate must be of, instead of the host's own |
/// | `sentinel_username`, `sentinel_password` | for Sentinels that want a login. The user and the password before `@` are for the server |
///
/// `protocol=resp3` speaks that protocol.
#[derive(Clone)]
pub struct Address {
    info: ConnectionInfo,
    #[cfg(feature = "tls")]
    tls: Tls,
    /// Where the servers are, where that is not known of itself: what `info` has is only how they are spoken to.
    found_by: Option<FoundBy>,
    /// Whoever knows the user and the password, where the URL does not.
    credentials: Option<Asked>,
}

#[derive(Clone)]
enum FoundBy {
    Sentinels(Arc<Sentinels>),
    /// Some of the cluster's nodes.
    Nodes(Arc<[Address]>),
}

/// Who says where a server is, by the name that they have for it.
#[derive(Debug)]
pub(crate) struct Sentinels {
    pub(super) name: String,
    pub(super) seeds: Vec<Address>,
}

impl Address {
    /// The setting `redis` of an instance.
    ///
    /// # Errors
    /// What is wrong with it, as [`Address::parse`] says it.
    pub(crate) fn of_setting(url: &str) -> Result<Self, StartError> {
        Self::parse(url).map_err(|problem| StartError::Setting { setting: "redis", problem })
    }

    /// Reads a URL, and the files that it names.
    ///
    /// # Errors
    /// What is wrong with it, without quoting it: it may hold a password.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        if is_cut(url) {
            return Err(format!("not a Redis URL: {ENCODE}"));
        }
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let (base, servers) = match scheme.split_once(['+', '-']) {
            Some((
                base @ ("redis" | "rediss" | "valkey" | "valkeys"),
                servers @ ("sentinel" | "cluster"),
            )) => (base, servers),
            _ => (scheme, ""),
        };
        let encrypted = matches!(base, "rediss" | "valkeys");
        if encrypted && !cfg!(feature = "tls") {
            return Err(
                "for TLS, which this build does not have: build it with the feature `tls`, or use redis://"
                    .to_owned(),
            );
        }
        if url.split_once('#').is_some() {
            return Err("not a Redis URL: what follows `#` is of no use. A server by TLS is always verified: name whom to trust by `?ssl_ca_certs=FILE`".to_owned());
        }
        let parameters = parameters(url);
        let read = match servers {
            "sentinel" => Self::watched(base, rest, &parameters)?,
            "cluster" => Self::nodes(base, rest, &parameters)?,
            _ => Self::of(client_info(url)?),
        };
        let known: &[&str] = match (read.addr(), servers) {
            (ConnectionAddr::Unix(_), _) => &["db", "user", "pass", "protocol"],
            (_, "sentinel") => &["protocol", "sentinel_username", "sentinel_password"],
            _ => &["protocol"],
        };
        for (at, (name, _)) in parameters.iter().enumerate() {
            let of_tls = encrypted && OF_TLS.contains(&name.as_str());
            if !of_tls && !known.contains(&name.as_str()) {
                return Err(unknown(name, known, encrypted));
            }
            if parameters[..at].iter().any(|(other, _)| other == name) {
                return Err(format!("a Redis URL with two parameters {name:?}"));
            }
        }
        #[cfg(feature = "tls")]
        let read = read.trusting(&Tls::of(&parameters)?);
        Ok(read)
    }

    /// What Sentinels watch: `[user@]host[,host…]/name[/database]`.
    fn watched(base: &str, rest: &str, parameters: &[(String, String)]) -> Result<Self, String> {
        let like = "like redis+sentinel://host1:26379,host2:26379/mymaster";
        let (user, hosts, path) = parts(rest)?;
        let (name, database) = path.split_once('/').unwrap_or((path, ""));
        // As Sentinel has them.
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        {
            return Err(format!("a Redis URL without the name of what the Sentinels watch; {like}"));
        }
        let value = |name: &str| parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value);
        let login = RedisConnectionInfo::default();
        let login = match (value("sentinel_username"), value("sentinel_password")) {
            (None, None) => login,
            (None, Some(password)) => login.set_password(password),
            (Some(user), Some(password)) => login.set_username(user).set_password(password),
            (Some(_), None) => {
                return Err("a Redis URL with sentinel_username, and without sentinel_password".to_owned());
            }
        };
        let seed = |host: &str| {
            let port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            let port = if port { String::new() } else { format!(":{SENTINEL_PORT}") };
            let info = client_info(&format!("{base}://{host}{port}"))?;
            Ok(Self::of(info.set_redis_settings(login.clone())))
        };
        let seeds = hosts.split(',').map(seed).collect::<Result<_, String>>()?;
        // Of any host: Sentinels say which.
        let server = client_info(&format!("{base}://{user}server/{database}{}", protocol(parameters)))?;
        let sentinels = Sentinels { name: name.to_owned(), seeds };
        Ok(Self { found_by: Some(FoundBy::Sentinels(Arc::new(sentinels))), ..Self::of(server) })
    }

    /// Some nodes of a cluster: `[user@]host[,host…]`.
    fn nodes(base: &str, rest: &str, parameters: &[(String, String)]) -> Result<Self, String> {
        let (user, hosts, path) = parts(rest)?;
        if !matches!(path, "" | "0") {
            return Err("a Redis URL with a database, and a cluster has none but 0".to_owned());
        }
        let protocol = protocol(parameters);
        let node = |host: &str| client_info(&format!("{base}://{user}{host}{protocol}")).map(Self::of);
        let nodes = hosts.split(',').map(node).collect::<Result<Arc<[Self]>, String>>()?;
        Ok(Self { found_by: Some(FoundBy::Nodes(Arc::clone(&nodes))), ..nodes[0].clone() })
    }

    fn of(info: ConnectionInfo) -> Self {
        Self {
            info,
            #[cfg(feature = "tls")]
            tls: Tls::default(),
            found_by: None,
            credentials: None,
        }
    }

    #[cfg(feature = "tls")]
    fn trusting(self, tls: &Tls) -> Self {
        let each = |of: &[Self]| of.iter().cloned().map(|one| one.trusting(tls)).collect::<Vec<_>>();
        let found_by = self.found_by.map(|found_by| match found_by {
            FoundBy::Sentinels(by) => {
                FoundBy::Sentinels(Arc::new(Sentinels { name: by.name.clone(), seeds: each(&by.seeds) }))
            }
            FoundBy::Nodes(nodes) => FoundBy::Nodes(each(&nodes).into()),
        });
        Self { tls: tls.clone(), found_by, ..self }
    }

    /// Has the user and the password asked for, each time that a connection is made: they may be other ones by then, as tokens are.
    /// Whoever dials at the same time shares an answer. Those of the URL are not used. Sentinels keep theirs.
    ///
    /// `ask` is given two seconds. It is called for each connection that is made anew, so it had better remember what is good for a
    /// while. Its future may be dropped, or be left for a while and go on then. Where it fails, is late or panics, there is no
    /// connection: as if the server refused it, it is tried again, and [`Health::troubles`](crate::Health::troubles) quotes the error.
    /// So it must have no secret in it.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use perto::redis::{Credentials, address};
    /// # async fn token() -> Result<String, std::io::Error> { Ok(String::new()) }
    /// # fn example() -> Result<(), perto::StartError> {
    /// let redis = address("rediss+cluster://cache.internal")?
    ///     .with_credentials(async || Ok::<_, std::io::Error>(Credentials { user: Some("shop".to_owned()), password: token().await? }));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_credentials<Fut, E>(self, ask: impl Fn() -> Fut + Send + Sync + 'static) -> Self
    where
        Fut: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let asked = Asked::new(move || {
            let asking = ask();
            async move { asking.await.map_err(|error| Arc::from(error.into())) }.boxed()
        });
        self.asking(Some(asked))
    }

    fn asking(self, credentials: Option<Asked>) -> Self {
        let found_by = self.found_by.map(|found_by| match found_by {
            FoundBy::Nodes(nodes) => {
                FoundBy::Nodes(nodes.iter().map(|node| node.clone().asking(credentials.clone())).collect())
            }
            sentinels @ FoundBy::Sentinels(_) => sentinels,
        });
        Self { credentials, found_by, ..self }
    }

    /// As the other one is logged in to, unless it says something else.
    pub(crate) fn with_credentials_of(self, other: &Self) -> Self {
        let says = self.user().is_some() || self.settings().password().is_some();
        if says { self } else { self.asking(other.credentials.clone()) }
    }

    /// How it is spoken to by a connection that is made now.
    ///
    /// # Errors
    /// If whoever is asked for the password does not say it.
    pub(super) async fn login(&self) -> RedisResult<RedisConnectionInfo> {
        let settings = self.settings().clone();
        match &self.credentials {
            None => Ok(settings),
            Some(asked) => asked.into(settings).await,
        }
    }

    /// One server that is spoken to in the same way.
    pub(super) fn at(&self, host: String, port: u16) -> Self {
        let mut addr = self.info.addr().clone();
        if let ConnectionAddr::Tcp(this, its) | ConnectionAddr::TcpTls { host: this, port: its, .. } =
            &mut addr
        {
            (*this, *its) = (host, port);
        }
        Self { info: self.info.clone().set_addr(addr), found_by: None, ..self.clone() }
    }

    /// Another server at this host.
    pub(super) fn at_port(&self, port: u16) -> Self {
        let host = match self.addr() {
            ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
            _ => String::new(),
        };
        self.at(host, port)
    }

    /// The place without the user: `host:port`, a path, or who knows it.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.found_by {
            Some(FoundBy::Sentinels(sentinels)) => {
                format!("{} by Sentinel {}", sentinels.name, places(&sentinels.seeds))
            }
            Some(FoundBy::Nodes(nodes)) => format!("the cluster of {}", places(nodes)),
            None => self.info.addr().to_string(),
        }
    }

    /// Host and port, or the path of a socket.
    pub(super) fn server(&self) -> (String, Option<u16>) {
        match self.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                (host.clone(), Some(*port))
            }
            other => (other.to_string(), None),
        }
    }

    /// Whether it names one server, which is where it says.
    #[must_use]
    pub fn is_one_server(&self) -> bool {
        self.found_by.is_none()
    }

    /// Whether it is a cluster's.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        self.cluster().is_some()
    }

    /// The user, where it has one.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.settings().username()
    }

    /// The number of the database.
    #[must_use]
    pub fn database(&self) -> i64 {
        self.settings().db()
    }

    /// Who says where the server is, where the URL does not.
    pub(crate) fn sentinels(&self) -> Option<&Arc<Sentinels>> {
        match &self.found_by {
            Some(FoundBy::Sentinels(sentinels)) => Some(sentinels),
            _ => None,
        }
    }

    /// Some of its nodes, where it is a cluster's.
    pub(crate) fn cluster(&self) -> Option<&[Self]> {
        match &self.found_by {
            Some(FoundBy::Nodes(nodes)) => Some(nodes),
            _ => None,
        }
    }

    pub(super) fn addr(&self) -> &ConnectionAddr {
        self.info.addr()
    }

    pub(super) fn settings(&self) -> &RedisConnectionInfo {
        self.info.redis_settings()
    }

    #[cfg(feature = "tls")]
    pub(super) const fn tls(&self) -> &Tls {
        &self.tls
    }
}

/// As the client reads it.
fn client_info(url: &str) -> Result<ConnectionInfo, String> {
    url.into_connection_info()
        .map_err(|error| format!("not a Redis URL ({:?}); like redis://127.0.0.1:6379/0", error.kind()))
}

fn places(of: &[Address]) -> String {
    of.iter().map(Address::place).collect::<Vec<_>>().join(",")
}

/// The user with its `@`, the hosts, and the path, of what follows `://`.
///
/// # Errors
/// If there are several users: one's password would be taken for a host's name, and looked up as one.
fn parts(rest: &str) -> Result<(&str, &str, &str), String> {
    let place = rest.split_once('?').map_or(rest, |(place, _)| place);
    let (authority, path) = place.split_once('/').unwrap_or((place, ""));
    let (user, hosts) = authority.split_at(authority.find('@').map_or(0, |at| at + 1));
    if hosts.contains('@') {
        return Err(format!(
            "a Redis URL with several @: the user stands before the first host, for all of them; {ENCODE}"
        ));
    }
    Ok((user, hosts, path))
}

fn protocol(parameters: &[(String, String)]) -> String {
    let said = parameters.iter().find(|(name, _)| name == "protocol");
    said.map_or(String::new(), |(_, protocol)| format!("?protocol={protocol}"))
}

fn parameters(url: &str) -> Vec<(String, String)> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

/// A name that is none may be a part of a password.
fn unknown(name: &str, known: &[&str], encrypted: bool) -> String {
    let plain = !name.is_empty()
        && name.len() <= 40
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let which = if plain { format!("the parameter {name:?}") } else { "a parameter".to_owned() };
    let known = if encrypted { [known, &OF_TLS].concat() } else { known.to_vec() }.join(", ");
    let of_tls =
        if name.starts_with("ssl_") && plain && !encrypted { "; for TLS it begins with rediss" } else { "" };
    format!("a Redis URL with {which}, which is not known: known are {known}{of_tls}")
}

impl fmt::Debug for Address {
    /// Without the user: the URL may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Address").field(&self.place()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_url_is_said_and_no_word_of_it() {
        for url in
            ["redis://:s3/cret@h:1/0", "redis://:1/s3cret@h", "redis://u:s3#cret@h", "redis://u:s3?cret@h"]
        {
            let refused = Address::parse(url).unwrap_err();
            assert!(refused.contains("`/` as %2F") && !refused.contains("cret"), "{url}: {refused}");
        }
        // Else the second password would be a part of the first, or of a host that is looked up.
        for url in ["redis+cluster://u:s3cret@h,u:s3cret@h2", "redis+sentinel://u:s3@cret@h/main"] {
            let refused = Address::parse(url).unwrap_err();
            assert!(refused.contains("`@` as %40") && !refused.contains("cret"), "{url}: {refused}");
        }
        let refused = Address::parse("http://u:s3cret@h").unwrap_err();
        assert!(refused.contains("not a Redis URL") && !refused.contains("cret"), "{refused}");
        for url in [
            "redis://h",
            "redis://:a%2Fb@h:1/2",
            "valkey://h",
            "redis://[::1]:6379",
            "redis://h?protocol=resp3",
            "redis+unix:///run/redis.sock?db=1&user=a&pass=b",
        ] {
            assert!(Address::parse(url).is_ok(), "{url}");
        }
        for url in [
            "rediss://h",
            "valkeys://h",
            "rediss://h?ssl_host=cache.internal",
            "rediss+sentinel://h/main?ssl_host=cache.internal",
            "valkeys-cluster://h1,h2?ssl_host=cache.internal",
        ] {
            let tls = Address::parse(url);
            assert_eq!(tls.is_ok(), cfg!(feature = "tls"), "{url}");
            assert!(tls.err().is_none_or(|refused| refused.contains("the feature `tls`")), "{url}");
        }
    }

    #[test]
    fn a_parameter_that_is_not_known_is_refused_by_its_name_and_nothing_else_is_shown() {
        for (url, said) in [
            ("redis://u:s3cret@h?timeout=5", "\"timeout\", which is not known: known are protocol"),
            ("redis://h?db=s3cret", "\"db\""),
            ("redis://h?ssl_ca_certs=s3cret", "begins with rediss"),
            ("redis://h?S3CRET=1", "a parameter, which is not known"),
            ("redis://h?protocol=resp2&protocol=resp3", "two parameters \"protocol\""),
            ("redis+unix:///run/s3cret?host=1", "known are db, user, pass, protocol"),
            ("redis://h#insecure", "always verified"),
            (
                "redis+sentinel://h/main?name=s3cret",
                "known are protocol, sentinel_username, sentinel_password",
            ),
            ("redis+sentinel://h/main?ssl_host=s3cret", "begins with rediss"),
            ("redis+unix+sentinel:///run/s3cret/main", "not a Redis URL"),
        ] {
            let refused = Address::parse(url).unwrap_err();
            assert!(refused.contains(said) && !refused.to_lowercase().contains("s3cret"), "{url}: {refused}");
        }
    }

    #[test]
    fn sentinels_are_a_list_of_hosts_and_the_name_of_what_they_watch() {
        let url = "redis+sentinel://shop:a%2Fb@h1,h2:1,[::1],[::1]:7/main/3?sentinel_password=c%26d&sentinel_username=watch&protocol=resp3";
        for url in [url.to_owned(), url.replacen("redis+", "valkey-", 1)] {
            let address = Address::parse(&url).unwrap();
            assert_eq!(address.place(), "main by Sentinel h1:26379,h2:1,::1:26379,::1:7");
            let sentinels = address.sentinels().unwrap();
            for seed in &sentinels.seeds {
                assert!(seed.is_one_server());
                let login = (seed.settings().username(), seed.settings().password());
                assert_eq!((login, seed.settings().db()), ((Some("watch"), Some("c&d")), 0));
            }
            let server = address.at("10.0.0.9".to_owned(), 6_380);
            let login = (server.settings().username(), server.settings().password());
            assert_eq!((login, server.settings().db()), ((Some("shop"), Some("a/b")), 3));
            assert_eq!((server.place().as_str(), server.is_one_server()), ("10.0.0.9:6380", true));
            assert!(!format!("{address:?} {sentinels:?} {server:?}").contains("a/b"));
        }
        for (url, said) in [
            ("redis+sentinel://u:s3cret@h1,h2", "without the name"),
            ("redis+sentinel://u:s3cret@h1,h2/", "without the name"),
            ("redis+sentinel://u:s3cret@h1/na%20me", "without the name"),
            ("redis+sentinel://u:s3cret@/main", "not a Redis URL"),
            ("redis+sentinel://u:s3cret@h1,,h2/main", "not a Redis URL"),
            ("redis+sentinel://u:s3cret@h1:x/main", "not a Redis URL"),
            ("redis+sentinel://u:s3cret@h1/main/x", "not a Redis URL"),
            ("redis+sentinel://u:s3/cret@h1/main", "`/` as %2F"),
            ("redis+sentinel://h1/main?sentinel_username=s3cret", "without sentinel_password"),
        ] {
            let refused = Address::parse(url).unwrap_err();
            assert!(refused.contains(said) && !refused.contains("cret"), "{url}: {refused}");
        }
    }

    #[test]
    fn a_cluster_is_a_list_of_nodes() {
        for url in ["redis+cluster://shop:a%2Fb@h1,[::1]:7000", "valkey-cluster://shop:a%2Fb@h1,[::1]:7000/0"]
        {
            let address = Address::parse(url).unwrap();
            assert_eq!(address.place(), "the cluster of h1:6379,::1:7000");
            let node = address.at("10.0.0.9".to_owned(), 7_001);
            for one in address.cluster().unwrap().iter().chain([&node, &node.at_port(1)]) {
                assert!(one.is_one_server());
                assert_eq!(
                    (one.settings().username(), one.settings().password()),
                    (Some("shop"), Some("a/b"))
                );
            }
            assert_eq!(
                (node.place(), node.at_port(1).place()),
                ("10.0.0.9:7001".to_owned(), "10.0.0.9:1".to_owned())
            );
        }
        for (url, said) in [
            ("redis+cluster://u:s3cret@h1,h2/1", "none but 0"),
            ("redis+cluster://u:s3cret@h1,,h2", "not a Redis URL"),
            ("redis+cluster://u:s3cret@", "not a Redis URL"),
            ("redis+cluster://u:s3cret@h1?sentinel_password=s3cret", "known are protocol"),
        ] {
            let refused = Address::parse(url).unwrap_err();
            assert!(refused.contains(said) && !refused.contains("s3cret"), "{url}: {refused}");
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn what_is_wrong_with_the_files_of_tls_is_said_at_once() {
        let text = std::env::temp_dir().join(format!("perto-no-pem-{}", std::process::id()));
        std::fs::write(&text, "s3cret").unwrap();
        let text = text.to_str().unwrap();
        for (query, said) in [
            ("ssl_ca_certs=/nowhere/ca.pem", "ssl_ca_certs: /nowhere/ca.pem: "),
            (&format!("ssl_ca_certs={text}"), "no certificate in it"),
            ("ssl_certfile=/nowhere/a.pem", "ssl_certfile and ssl_keyfile go together"),
            (&format!("ssl_certfile={text}&ssl_keyfile={text}"), "ssl_certfile: "),
            ("ssl_host=no%20name", "ssl_host: no name of a host"),
        ] {
            let refused = Address::parse(&format!("rediss://h?{query}")).unwrap_err();
            assert!(refused.contains(said) && !refused.contains("s3cret"), "{query}: {refused}");
        }
        drop(std::fs::remove_file(text));
    }
}
