//! Where a Redis server is, and how it is spoken to.

use std::fmt;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

#[cfg(feature = "tls")]
use super::tls::Tls;
use crate::url::{ENCODE, is_cut};

/// A server, the user, and whom to trust: a URL that makes sense.
///
/// | URL | |
/// | --- | --- |
/// | `redis://[user[:password]@]host[:6379][/database]` | by TCP; `valkey://` is the same |
/// | `rediss://…`, `valkeys://…` | by TLS, with the feature `tls` |
/// | `redis+unix:///path[?db=&user=&pass=]` | by a Unix socket; `valkey+unix:` and `unix:` are the same |
///
/// With TLS, parameters say whom to trust, and who we are. Their files are PEM, and read at each connection: replaced ones are
/// used from the next one on.
///
/// | Parameter | |
/// | --- | --- |
/// | `ssl_ca_certs` | a file of certificates that are trusted, instead of those that the machine trusts |
/// | `ssl_certfile`, `ssl_keyfile` | our certificate with what leads to it, and its key, where the server asks for them |
/// | `ssl_host` | the name that the server's certificate must be of, instead of the URL's host |
///
/// `protocol=resp3` speaks that protocol.
#[derive(Clone)]
pub struct Address {
    info: ConnectionInfo,
    #[cfg(feature = "tls")]
    tls: Tls,
}

impl Address {
    /// Reads a URL, and the files that it names.
    ///
    /// # Errors
    /// What is wrong with it, without quoting it: it may hold a password.
    pub(crate) fn parse(url: &str) -> Result<Self, String> {
        if is_cut(url) {
            return Err(format!("not a Redis URL: {ENCODE}"));
        }
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        let encrypted = matches!(scheme, "rediss" | "valkeys");
        if encrypted && !cfg!(feature = "tls") {
            return Err(
                "for TLS, which this build does not have: build it with the feature `tls`, or use redis://"
                    .to_owned(),
            );
        }
        if url.split_once('#').is_some() {
            return Err("not a Redis URL: what follows `#` is of no use. A server by TLS is always verified: name whom to trust by `?ssl_ca_certs=FILE`".to_owned());
        }
        let info = url.into_connection_info().map_err(|error| {
            format!("not a Redis URL ({:?}); like redis://127.0.0.1:6379/0", error.kind())
        })?;
        let known: &[&str] = match (info.addr(), encrypted) {
            (ConnectionAddr::Unix(_), _) => &["db", "user", "pass", "protocol"],
            (_, true) => &["protocol", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_host"],
            (_, false) => &["protocol"],
        };
        let parameters = parameters(url);
        for (at, (name, _)) in parameters.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                return Err(unknown(name, known));
            }
            if parameters[..at].iter().any(|(other, _)| other == name) {
                return Err(format!("a Redis URL with two parameters {name:?}"));
            }
        }
        Ok(Self {
            info,
            #[cfg(feature = "tls")]
            tls: Tls::of(&parameters)?,
        })
    }

    /// The place without the user: `host:port`, or a path.
    #[must_use]
    pub fn place(&self) -> String {
        self.info.addr().to_string()
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

fn parameters(url: &str) -> Vec<(String, String)> {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    form_urlencoded::parse(query.as_bytes()).into_owned().collect()
}

/// A name that is none may be a part of a password.
fn unknown(name: &str, known: &[&str]) -> String {
    let plain = !name.is_empty()
        && name.len() <= 40
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let which = if plain { format!("the parameter {name:?}") } else { "a parameter".to_owned() };
    let of_tls = if name.starts_with("ssl_") && plain { "; for TLS it begins with rediss://" } else { "" };
    format!("a Redis URL with {which}, which is not known: known are {}{of_tls}", known.join(", "))
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
        for url in ["rediss://h", "valkeys://h", "rediss://h?ssl_host=cache.internal"] {
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
            ("redis://h?ssl_ca_certs=s3cret", "begins with rediss://"),
            ("redis://h?S3CRET=1", "a parameter, which is not known"),
            ("redis://h?protocol=resp2&protocol=resp3", "two parameters \"protocol\""),
            ("redis+unix:///run/s3cret?host=1", "known are db, user, pass, protocol"),
            ("redis://h#insecure", "always verified"),
        ] {
            let refused = Address::parse(url).unwrap_err();
            assert!(refused.contains(said) && !refused.to_lowercase().contains("s3cret"), "{url}: {refused}");
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
