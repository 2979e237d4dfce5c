//! URLs of Postgres: what they may say, checked before sqlx reads them.
//!
//! sqlx writes a parameter that it doesn't know into the log, with its value. `sslpassword` is one, and so is `PASSWORD`.

use std::borrow::Cow;
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

use crate::url::{ENCODE, is_cut};

/// What sqlx reads. A test asks it.
const KNOWN: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// What others read in such URLs, and what to do here.
const OTHERS: [(&str, &str); 32] = [
    ("channel_binding", "leave it out: it is used where the server offers it"),
    ("client_encoding", "leave it out: it is always UTF8"),
    ("connect_timeout", "leave it out: Perto has limits of its own"),
    ("connection_limit", "leave it out: the size of a pool is set where the pool is made"),
    ("fallback_application_name", "use application_name"),
    ("gssdelegation", NO_GSS),
    ("gssencmode", NO_GSS),
    ("gsslib", NO_GSS),
    ("keepalives", KEEPALIVES),
    ("keepalives_count", KEEPALIVES),
    ("keepalives_idle", KEEPALIVES),
    ("keepalives_interval", KEEPALIVES),
    ("krbsrvname", NO_GSS),
    ("load_balance_hosts", ONE_HOST),
    ("min_protocol_version", "leave it out: it is always 3.0"),
    ("max_protocol_version", "leave it out: it is always 3.0"),
    ("passfile", "set PGPASSFILE in the environment"),
    ("pgbouncer", "leave it out, and switch off prepared statements"),
    ("pool_timeout", "leave it out: the limits of a pool are set where the pool is made"),
    ("replication", "leave it out: Perto reads tables"),
    ("require_auth", "leave it out: the server decides how it is asked"),
    ("schema", "set the search path by options[search_path]=NAME"),
    ("service", "write host, port, user and database into the URL"),
    ("sslcompression", "leave it out: there is no compression"),
    ("sslcrl", "leave it out: lists of revoked certificates are not read"),
    ("sslcrldir", "leave it out: lists of revoked certificates are not read"),
    ("sslnegotiation", "leave it out: TLS begins after a request for it"),
    ("sslpassword", "use a key without a password, in a file that only this program may read"),
    ("sslsni", "leave it out: the name is always sent"),
    ("target_session_attrs", ONE_HOST),
    ("tcp_user_timeout", KEEPALIVES),
    ("timezone", "set it by options[timezone]=NAME"),
];

const NO_GSS: &str = "leave it out: GSSAPI is not supported";
const KEEPALIVES: &str = "leave it out: Perto notices by its own limits that a connection is of no use";
const ONE_HOST: &str = "leave it out, and name one host: the primary";

/// Reads a Postgres URL. Where it names no user, the environment does.
///
/// # Errors
/// What is wrong with it, without quoting it: it may hold a password.
pub(crate) fn options(url: &str) -> Result<PgConnectOptions, String> {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    options_of(url, ["PGUSER", "USER", "LOGNAME"].into_iter().find_map(set))
}

/// Takes `user` where the URL names none. sqlx would take "anonymous": it is built without a look at the system's users.
fn options_of(url: &str, user: Option<String>) -> Result<PgConnectOptions, String> {
    const NONE: &str = "not a Postgres URL; like postgres://user@127.0.0.1:5432/database";
    const NOBODY: &str = "the URL names no user, and neither PGUSER nor USER is set; like \
        postgres://user@127.0.0.1:5432/database";
    let scheme = url.split_once("://").map(|(scheme, _)| scheme);
    if !matches!(scheme, Some("postgres" | "postgresql")) {
        return Err(NONE.to_owned());
    }
    if is_cut(url) {
        return Err(format!("not a Postgres URL: {ENCODE}"));
    }
    let (place, query) = parts(url);
    check(query)?;
    let options =
        PgConnectOptions::from_str(url).map(named).map_err(
            |_quotes_the_url| match PgConnectOptions::from_str(place) {
                Ok(_) => "one of its parameters has a value that is none: see sslmode, port, hostaddr and \
            statement-cache-capacity"
                    .to_owned(),
                Err(_) => NONE.to_owned(),
            },
        )?;
    if names_a_user(place, query) {
        return Ok(options);
    }
    let user = user.ok_or(NOBODY)?;
    // In the URL, not afterwards: what `.pgpass` has is that user's password.
    let as_user = format!("{place}?{query}&user={}", encoded(&user));
    PgConnectOptions::from_str(&as_user).map(named).map_err(|_quotes_the_url| NONE.to_owned())
}

fn names_a_user(place: &str, query: &str) -> bool {
    let rest = place.split_once("://").map_or(place, |(_, rest)| rest);
    let (address, _) = rest.split_once('/').unwrap_or((rest, ""));
    let before = address.rsplit_once('@').is_some_and(|(user, _)| !user.is_empty() && !user.starts_with(':'));
    let is_user = |(name, value): (&str, &str)| decoded(name) == "user" && !value.is_empty();
    before || query.split('&').filter_map(|parameter| parameter.split_once('=')).any(is_user)
}

fn encoded(text: &str) -> String {
    let sign = |b: u8| {
        if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") }
    };
    text.bytes().map(sign).collect()
}

/// The address of IPv6 as the system reads it: a URL has brackets around it.
fn named(options: PgConnectOptions) -> PgConnectOptions {
    match options.get_host().strip_prefix('[').and_then(|host| host.strip_suffix(']')).map(str::to_owned) {
        Some(host) => options.host(&host),
        None => options,
    }
}

/// What stands before the parameters, and they.
fn parts(url: &str) -> (&str, &str) {
    let url = url.split('#').next().unwrap_or(url);
    url.split_once('?').unwrap_or((url, ""))
}

fn check(query: &str) -> Result<(), String> {
    // A password with a raw `?` ends the place, and its rest looks like a parameter: that must not be shown.
    let secret = query.contains('@');
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let name = decoded(parameter.split('=').next().unwrap_or_default());
        let setting = name.strip_prefix("options[").and_then(|rest| rest.strip_suffix(']'));
        if KNOWN.contains(&&*name) || setting.is_some_and(|setting| !setting.is_empty()) {
            continue;
        }
        let lower = name.to_ascii_lowercase();
        let like = lower.replace(['-', '_'], "");
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-[].".contains(&b);
        return Err(if KNOWN.contains(&&*lower) {
            format!("it has a parameter {name}, which is not known: write {lower}")
        } else if let Some((known, hint)) = OTHERS.iter().find(|(known, _)| known.replace('_', "") == like) {
            format!("it has a parameter {known}, which is not known: {hint}")
        } else if secret || name.is_empty() || name.len() > 63 || !name.bytes().all(plain) {
            "it has a parameter that can't be one: percent-encode `?` (%3F), `#` (%23), `&` (%26) and `@` (%40) in \
             names, passwords and values"
                .to_owned()
        } else {
            format!(
                "it has a parameter {name}, which is not known: leave it out; a setting of the server is \
                 options[{name}]=VALUE"
            )
        });
    }
    Ok(())
}

/// A name without its percent-encoding; as it is where that is none.
fn decoded(name: &str) -> Cow<'_, str> {
    if !name.contains('%') {
        return Cow::Borrowed(name);
    }
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, after @ ..] = rest {
        let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let encoded = match after {
            [high, low, ..] if *first == b'%' => digit(*high).zip(digit(*low)),
            _ => None,
        };
        bytes.push(encoded.map_or(*first, |(high, low)| high << 4 | low));
        rest = if encoded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).map_or(Cow::Borrowed(name), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: &str = "postgres://u:s3cret@127.0.0.1:1/db";

    #[test]
    fn what_sqlx_knows_passes_however_it_is_written() {
        for query in [
            "",
            "?",
            "?sslmode=disable&application_name=a%26b",
            "?options[search_path]=a&options%5Block_timeout%5D=1s&options=-c%20x%3Dy",
            "?host=%2Fvar%2Frun&&user=u%40v&password=p@s",
            "?ssl%6Dode=prefer#sslpassword=s3cret",
        ] {
            assert!(options(&format!("{PLACE}{query}")).is_ok(), "{query}");
        }
        // Each name changes what sqlx makes of the URL, or is refused for its value: none is passed over.
        let plain = format!("{:?}", PgConnectOptions::from_str(PLACE).unwrap());
        for name in KNOWN {
            let read = PgConnectOptions::from_str(&format!("{PLACE}?{name}=/odd"));
            assert!(read.is_err() || format!("{:?}", read.unwrap()) != plain, "{name}");
        }
    }

    #[test]
    fn where_the_url_names_no_user_the_environment_does_and_else_it_is_refused() {
        let user = |url: &str, from: Option<&str>| {
            options_of(url, from.map(str::to_owned)).map(|options| options.get_username().to_owned())
        };
        for url in [
            "postgres://h/db",
            "postgres://h:5432/db?sslmode=disable",
            "postgres:///db?host=/var/run",
            "postgres://@h/db",
            "postgres://:s3cret@h/db",
            "postgres://h/db?user=",
        ] {
            assert_eq!(user(url, Some("ada of r&d")).as_deref(), Ok("ada of r&d"), "{url}");
            let refused = user(url, None).unwrap_err();
            assert!(refused.contains("names no user") && !refused.contains("s3cret"), "{url}: {refused}");
        }
        for url in
            ["postgres://u@h/db", "postgres://u:p@h", "postgres://h/db?user=u", "postgres://h?us%65r=u"]
        {
            assert_eq!(user(url, Some("ada")).as_deref(), Ok("u"), "{url}");
        }
        let kept = options_of("postgres://h:7/db?application_name=a%26b", Some("ada".to_owned())).unwrap();
        let asked = (kept.get_host(), kept.get_port(), kept.get_database(), kept.get_application_name());
        assert_eq!(asked, ("h", 7, Some("db"), Some("a&b")));
    }

    #[test]
    fn an_address_of_ipv6_is_one() {
        for (url, host) in [
            ("postgres://u@[::1]:5432/db", "::1"),
            ("postgres://u:p@[fe80::1]/db", "fe80::1"),
            ("postgres://u@h/db?host=[::1]", "::1"),
            ("postgres://u@127.0.0.1/db", "127.0.0.1"),
        ] {
            assert_eq!(options(url).unwrap().get_host(), host, "{url}");
        }
    }

    #[test]
    fn a_password_that_has_to_be_encoded_is_said_and_not_shown() {
        for url in [
            "postgres://u:s3/cret@h/db",
            "postgres://u:1/s3cret@h/db",
            "postgres://u:s3#cret@h:1/db",
            "postgres://u:s3?cret@h/db",
            "postgres://u:s3@h/cret@h/db",
        ] {
            let refused = options(url).unwrap_err();
            assert!(refused.contains("`/` as %2F") && !refused.contains("cret"), "{url}: {refused}");
        }
        assert!(options("postgres://u:s3@cret@h/db").is_ok());
    }

    #[test]
    fn what_sqlx_does_not_know_is_refused_by_its_name_and_never_with_its_value() {
        for (query, says) in [
            ("sslpassword=s3cret", "parameter sslpassword, which is not known: use a key without"),
            ("ssl-password=s3cret", "parameter sslpassword"),
            ("PASSWORD=s3cret", "PASSWORD, which is not known: write password"),
            ("sslmode=disable&Pass%57ord=s3cret", "write password"),
            ("connect_timeout=s3cret", "Perto has limits of its own"),
            ("target_session_attrs=s3cret", "name one host"),
            ("search_path=s3cret", "options[search_path]=VALUE"),
            ("options[search_path=s3cret", "options[search_path, which is not known"),
            ("s3cret=s3cret@", "that can't be one: percent-encode `?`"),
            ("=s3cret", "that can't be one"),
            ("port=s3cret", "has a value that is none: see sslmode, port"),
        ] {
            let refused = options(&format!("{PLACE}?{query}")).unwrap_err();
            assert!(refused.contains(says), "{query}: {refused}");
            assert!(!refused.contains("s3cret"), "{query}: {refused}");
        }
        let raw = options("postgres://u:1?s3cret&more@127.0.0.1:1/db").unwrap_err();
        assert!(raw.contains("`?` as %3F") && !raw.contains("s3cret") && !raw.contains("more@"), "{raw}");
        for none in ["", "postgres:u", "redis://h", "postgres://u:p#x@h:1/db", "postgres://h:port/x"] {
            assert!(options(none).unwrap_err().contains("not a Postgres URL"), "{none}");
        }
    }
}
