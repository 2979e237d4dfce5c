//! Bad input: one clear line that names the setting, a non-zero exit, nothing left behind.

use std::process::Output;

use crate::command::{Database, perto, succeed};
use crate::support::engines::redis_url;

#[track_caller]
fn refused(output: &Output, names: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    let complaints: Vec<&str> = said.lines().filter(|line| line.starts_with("perto-chat: ")).collect();
    assert_eq!(complaints.len(), 1, "one line: {said}");
    assert!(complaints[0].contains(names), "{names}: {said}");
    assert!(!said.contains("s3cret"), "a password is shown: {said}");
}

#[test]
fn a_server_that_cannot_be_used_is_named_by_its_setting() {
    let database = Database::new();
    succeed(perto(&database.url, &redis_url()).arg("migrate"));
    let there = (database.url.as_str(), redis_url());
    let tls = if cfg!(feature = "tls") {
        "REDIS_URL: 127.0.0.1:1 can't be reached"
    } else {
        "REDIS_URL is for TLS"
    };
    let nobody = "postgres://nobody_at_all:s3cret@127.0.0.1:1/x";
    for (postgres, redis, names) in [
        ("", there.1.as_str(), "DATABASE_URL is not set"),
        ("mysql://u:s3cret@h/x", &there.1, "DATABASE_URL: not a Postgres URL"),
        (nobody, &there.1, "DATABASE_URL: 127.0.0.1:1 can't be reached"),
        (there.0, "", "REDIS_URL is not set"),
        (there.0, "http://u:s3cret@h", "REDIS_URL is not a Redis URL"),
        (there.0, "redis://:s3cret/x@h", "REDIS_URL is not a Redis URL: write `#` as %23"),
        (there.0, "redis://:1/s3cret@h", "REDIS_URL is not a Redis URL: write `#` as %23"),
        (there.0, "rediss://:s3cret@127.0.0.1:1", tls),
        ("postgres://u:1/s3cret@127.0.0.1/x", &there.1, "DATABASE_URL: not a Postgres URL: write `#` as %23"),
        ("postgres://u:s3cret@[::1]:1/x", &there.1, "DATABASE_URL: [::1]:1 can't be reached"),
        (there.0, "redis://:s3cret@127.0.0.1:1", "REDIS_URL: 127.0.0.1:1 can't be reached"),
        (there.0, "redis://:s3cret@no-such-host.invalid", "REDIS_URL: no-such-host.invalid:6379"),
    ] {
        let output =
            perto(postgres, redis).args(["replay", "--accesses", "10", "--keys", "10"]).output().unwrap();
        refused(&output, names);
    }
}

#[test]
fn a_database_or_role_that_is_not_there_is_said() {
    let database = Database::new();
    refused(&perto(&database.url, "").arg("seed").output().unwrap(), "has no database");
    let (scheme, rest) = database.url.split_once("://").unwrap();
    let host = rest.rsplit('@').next().unwrap();
    let stranger = format!("{scheme}://no_such_role_here:s3cret@{host}");
    refused(&perto(&stranger, "").arg("seed").output().unwrap(), "DATABASE_URL");
}

#[test]
fn a_trace_that_is_none_is_named() {
    let database = Database::new();
    succeed(perto(&database.url, &redis_url()).arg("migrate"));
    let dir = std::env::temp_dir().join(format!("perto-traces-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let text = dir.join("a.bin");
    std::fs::write(&text, "not\0a trace").unwrap();
    let cut = dir.join("cut.xz");
    std::fs::write(&cut, [0xFD, b'7', b'z', b'X', b'Z', 0, 0, 4, 0xE6, 0xD6, 0xB4, 0x46]).unwrap();
    for (path, names) in
        [(&text, "is not a trace"), (&cut, "cut short"), (&dir.join("none"), "can't be opened")]
    {
        let output = perto(&database.url, &redis_url()).arg("replay").arg(path).output().unwrap();
        refused(&output, "TRACE: ");
        refused(&output, names);
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_setting_that_makes_no_sense_is_named() {
    let database = Database::new();
    succeed(perto(&database.url, &redis_url()).arg("migrate"));
    for (arguments, names) in [
        (["--bound", "10ms"], "bound"),
        (["--value-bytes", "2000000"], "--value-bytes"),
        (["--writes", "1.5"], "--writes"),
        (["--faults", "instance9:pause@1s+1s"], "--faults"),
    ] {
        let output = perto(&database.url, &redis_url()).arg("replay").args(arguments).output().unwrap();
        refused(&output, names);
    }
}

#[test]
fn a_table_without_the_key_is_not_watched() {
    let database = Database::new();
    succeed(perto(&database.url, &redis_url()).arg("migrate"));
    let watch = |table: &str, key: &str| {
        perto(&database.url, "").args(["watch", table, "--cache", "c", "--key", key]).output().unwrap()
    };
    refused(&watch("companies", "no_such_column"), "key: ");
    refused(&watch("no_such_table", "id"), "table: ");
    succeed(perto(&database.url, "").args(["watch", "companies", "--cache", "c", "--key", "region"]));
    succeed(perto(&database.url, "").args(["watch", "companies", "--cache", "c", "--remove"]));
}

#[test]
fn an_address_that_is_taken_or_open_to_all_is_refused() {
    let database = Database::new();
    succeed(perto(&database.url, &redis_url()).arg("migrate"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let serve = |address: &str| {
        perto(&database.url, &redis_url()).args(["serve", "--listen", address]).output().unwrap()
    };
    refused(&serve(&address), "--listen");
    refused(&serve("0.0.0.0:0"), "--listen");
}
