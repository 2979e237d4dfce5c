//! What is secret is in no output of the command, wherever it was written.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::command::{Database, Served, perto, succeed};
use crate::support::engines::redis_url;
use crate::support::servers::Folder;

/// All that it says.
fn said(command: &mut Command) -> (bool, String) {
    let output = command.env("RUST_LOG", "info,sqlx=trace").output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), text)
}

#[test]
fn a_parameter_of_the_url_that_is_not_known_is_refused_by_its_name_and_its_value_is_shown_by_no_command() {
    let database = Database::new();
    succeed(perto(&database.url, "").arg("migrate"));
    let with = |parameter: &str| format!("{}?sslmode=prefer&{parameter}=s3cret", database.url);
    // Where it is not refused for that, it ends for another reason.
    let nowhere = Database::new();
    for (parameter, names) in [
        ("sslpassword", "sslpassword, which is not known: use a key without a password"),
        ("PASSWORD", "PASSWORD, which is not known: write password"),
        ("token", "token, which is not known"),
    ] {
        let url = with(parameter).replace(&database.url, &nowhere.url);
        let mut serve = perto(&url, &redis_url());
        let (_, said) = said(serve.args(["serve", "--listen", "127.0.0.1:0"]));
        assert!(said.contains(&format!("DATABASE_URL: it has a parameter {names}")), "{said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
    for arguments in [
        &["migrate"][..],
        &["seed"],
        &["watch", "companies", "--cache", "c"],
        &["doctor"],
        &["doctor", "--json"],
        &["inspect", "company", "1"],
        &["replay", "--accesses", "10", "--keys", "10"],
        &["keys", "list"],
    ] {
        let (well, said) = said(perto(&with("sslpassword"), &redis_url()).args(arguments));
        assert!(!well && said.contains("sslpassword") && !said.contains("s3cret"), "{arguments:?}: {said}");
    }
    let replica = with("sslpassword");
    let (well, said) = said(perto(&database.url, &redis_url()).args(["doctor", "--replica", &replica]));
    assert!(!well && said.contains("--replica: it has a parameter sslpassword"), "{said}");
    assert!(!said.contains("s3cret"), "{said}");
}

/// sqlx quotes it in a warning.
#[test]
fn a_line_of_pgpass_that_makes_no_sense_is_not_in_the_log() {
    let database = Database::new();
    succeed(perto(&database.url, "").arg("migrate"));
    let folder = Folder::new("pgpass");
    let file = folder.0.join("pgpass");
    std::fs::write(&file, "127.0.0.1:s3cret\n").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let mut command = perto(&database.url, &redis_url());
    command.env("PGPASSFILE", &file).env("RUST_LOG", "trace");
    let path = folder.0.join("log");
    let log = std::fs::File::create(&path).unwrap();
    assert!(Served::start_saying(command, "a", &[], log.into()).end());
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(log.contains("serving") && !log.contains("s3cret"), "{log}");
}
