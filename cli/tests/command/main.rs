//! The command `perto` as its users run it, on real engines: `DATABASE_URL` and `REDIS_URL`, else their usual places on this machine.
#![expect(clippy::unwrap_used, reason = "a test that unwraps nothing fails")]

use std::process::{Command, Output, Stdio};

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

mod first_use;
mod many_rows;
mod switches;

/// The name of a database that the test makes itself, and the URL that leads there.
fn fresh(name: &str) -> (String, String) {
    let server = std::env::var("DATABASE_URL")
        .unwrap_or_else(|_unset| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
    let name = format!("perto_cli_{name}_{}", std::process::id());
    let url = server.parse::<PgConnectOptions>().unwrap().database(&name).to_url_lossy();
    (name, url.to_string())
}

async fn drop_database(name: &str) {
    let (_, url) = fresh("unused");
    let server = url.parse::<PgConnectOptions>().unwrap().database("postgres");
    let mut server = server.connect().await.unwrap();
    let sql = format!("drop database if exists {name} with (force)");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut server).await.unwrap();
}

fn redis_url() -> String {
    std::env::var("REDIS_URL").unwrap_or_else(|_unset| "redis://127.0.0.1:6379".to_owned())
}

fn perto(url: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perto"));
    command.env("DATABASE_URL", url).env_remove("REDIS_URL").stdin(Stdio::null()).args(arguments);
    command.output().unwrap()
}

fn succeed(url: &str, arguments: &[&str]) -> String {
    let output = perto(url, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What is refused says so.
fn refused(url: &str, arguments: &[&str]) -> String {
    let output = perto(url, arguments);
    assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn it_has_the_tools_and_no_command_of_a_product() {
    let help = succeed("", &["--help"]);
    let has = |command: &str| help.lines().any(|line| line.trim_start().starts_with(command));
    for command in ["migrate ", "watch ", "doctor ", "inspect ", "replay "] {
        assert!(has(command), "no {command}in {help}");
    }
    for command in ["serve", "seed", "keys", "load", "healthcheck"] {
        assert!(!has(command), "{command} in {help}");
    }
}

#[tokio::test]
async fn after_two_commands_sql_typed_by_hand_is_in_the_log_and_the_doctor_is_content() {
    let (name, url) = fresh("log");
    drop_database(&name).await;
    succeed(&url, &["migrate"]);
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let table = "create table users (id bigint primary key, name text)";
    sqlx::raw_sql(table).execute(&mut connection).await.unwrap();
    succeed(&url, &["watch", "users", "--cache", "user", "--key", "id"]);
    sqlx::raw_sql("insert into users values (7, 'Ada')").execute(&mut connection).await.unwrap();
    let rows: i64 = sqlx::query_scalar(
        "select count(*) from perto.invalidation where cache = 'user' and '7' = any(keys)",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    assert_eq!(rows, 1);
    let findings: serde_json::Value = serde_json::from_str(&succeed(&url, &["doctor", "--json"])).unwrap();
    let checks = findings["checks"].as_array().unwrap();
    let watched = checks.iter().find(|check| check["check"] == "watched tables").unwrap();
    assert_eq!(watched["state"], "ok", "{watched}");
    // Nothing here belongs to a product.
    assert!(checks.iter().all(|check| check["check"] != "service"), "{findings}");
    drop(connection);
    drop_database(&name).await;
}

#[test]
fn what_is_wrong_is_said_in_one_line_that_begins_with_its_name() {
    let output = perto("", &["migrate"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.starts_with("perto: DATABASE_URL is not set") && said.lines().count() == 1, "{said}");
}
