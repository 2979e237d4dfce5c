//! Every example runs, on real engines, and says what it is there to show.
//!
//! Redis is at `REDIS_URL`, Postgres at `DATABASE_URL`, else at their usual places on this machine. Examples are built by
//! `cargo test` without `--test`; else by `cargo build --examples`.
#![expect(clippy::unwrap_used, reason = "a test that unwraps nothing fails")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};

/// A database of the example's own, dropped at the end.
struct Database {
    name: String,
    server: PgConnectOptions,
}

impl Database {
    async fn new(example: &str) -> Self {
        let url = std::env::var("DATABASE_URL")
            .unwrap_or_else(|_unset| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
        let this = Self {
            name: format!("perto_example_{example}_{}", std::process::id()),
            server: url.parse::<PgConnectOptions>().unwrap().database("postgres"),
        };
        this.run(&format!("drop database if exists {} with (force)", this.name)).await;
        this.run(&format!("create database {}", this.name)).await;
        this
    }

    async fn run(&self, sql: &str) {
        let mut connection = self.server.connect().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }

    fn command(&self, example: &str) -> Command {
        let tests = std::env::current_exe().unwrap();
        let program: PathBuf = tests.parent().unwrap().parent().unwrap().join("examples").join(example);
        assert!(program.exists(), "{} is not built: cargo build --examples", program.display());
        let redis = std::env::var("REDIS_URL").unwrap_or_else(|_unset| "redis://127.0.0.1:6379".to_owned());
        let mut command = Command::new(program);
        command.env("DATABASE_URL", self.server.clone().database(&self.name).to_url_lossy().as_str());
        command.env("REDIS_URL", redis).env("LISTEN", "127.0.0.1:0").stdin(Stdio::null());
        command
    }

    async fn end(self) {
        self.run(&format!("drop database {} with (force)", self.name)).await;
    }
}

/// What an example prints, line by line.
async fn prints(example: &str, lines: &[&str]) {
    let database = Database::new(example).await;
    let output = database.command(example).output().unwrap();
    let (said, complained) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{example}: {complained}");
    assert_eq!(said.lines().collect::<Vec<_>>(), lines, "{complained}");
    database.end().await;
}

/// What of the README begins with this line and a line feed, up to the end of its block.
fn block_of_readme(first: &str) -> &'static str {
    let readme = include_str!("../../README.md");
    let at = readme.find(&format!("\n{first}\n"));
    assert!(at.is_some(), "the README has no line {first}");
    readme[at.unwrap() + 1..].split("```").next().unwrap()
}

/// Whoever follows the README word for word: its table, its program, a second terminal, its SQL, and what it says that is printed.
#[tokio::test]
async fn the_readmes_program_is_the_quickstart_and_prints_what_the_readme_says() {
    let program = include_str!("../../examples/quickstart.rs");
    let begins = "use std::time::{Duration, Instant};";
    assert_eq!(block_of_readme(begins), &program[program.find(begins).unwrap()..]);
    let database = Database::new("quickstart").await;
    let mut connection = database.server.clone().database(&database.name).connect().await.unwrap();
    let tables = block_of_readme("create table users (id bigint primary key, name text not null);");
    sqlx::raw_sql(tables).execute(&mut connection).await.unwrap();
    let mut running = Served(database.command("quickstart").stdout(Stdio::piped()).spawn().unwrap());
    let mut said = String::new();
    let mut lines = BufReader::new(running.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    for line in lines.by_ref() {
        said.push_str(&format!("{line}\n"));
        if let Some(sql) = line.strip_prefix("In psql: ") {
            first_line_of_a_second_terminal_ends_with_remote(&database);
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        }
    }
    assert!(running.0.wait().unwrap().success(), "{said}");
    assert_eq!(block_of_readme("Some(\"Grace\"), Fresh, Load"), said);
    drop((running, connection));
    database.end().await;
}

/// A fill of Redis is given up where it takes too long: then the next one fills, and the one after it reads.
fn first_line_of_a_second_terminal_ends_with_remote(database: &Database) {
    let first_line = || {
        let mut second = Served(database.command("quickstart").stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(second.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        line
    };
    let said: Vec<String> = (0..5).map(|_| first_line()).collect();
    assert!(said.iter().any(|line| line == "Some(\"Grace\"), Fresh, Remote\n"), "{said:?}");
}

#[tokio::test]
async fn tokens_carry_a_write_and_what_was_read_to_the_other_instance() {
    let lines = ["before: Some(10)", "after: Some(9)", "one sells by hand: Some(8)", "never older: Some(8)"];
    prints("two_instances", &lines).await;
}

#[tokio::test]
async fn a_join_a_list_and_a_count_see_sql_typed_by_hand() {
    let lines = [
        r#"Bea of Acme; Some(["Bea", "Cid"]) of Some(2)"#,
        r#"Bea of Acme Ltd; Some(["Ada", "Bea"]) of Some(3)"#,
    ];
    prints("many_rows", &lines).await;
}

#[tokio::test]
async fn a_view_never_shows_a_transfer_half_done() {
    prints("view", &["before: [100, 0]", "seen half done: 0", "after: [0, 100]"]).await;
}

#[tokio::test]
async fn keys_of_several_columns_and_of_an_enum_find_their_rows() {
    prints("keys", &["1:BRL: Some(500)", "1:EUR: Some(900)"]).await;
}

#[tokio::test]
async fn what_comes_from_elsewhere_is_invalidated_by_hand() {
    prints("elsewhere", &["Some(6.3)", "Some(6.4)"]).await;
}

#[tokio::test]
async fn ones_own_code_is_tested_without_engines() {
    prints("simulated", &["Hello stranger", "Hello Ada", "Hello, I think, Ada"]).await;
}

/// Ended with the test.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test]
async fn a_web_service_reads_back_what_it_wrote() {
    let database = Database::new("web").await;
    let mut served = Served(database.command("web").stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(served.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("http://").unwrap().split('/').next().unwrap().to_owned();
    let ask = |method: &str, headers: &str, body: &str| {
        let mut stream = TcpStream::connect(&address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} /items/1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n{headers}\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("GET", "", "").starts_with("HTTP/1.1 404"));
    let written = ask("PUT", "", "\"tea\"");
    assert!(written.starts_with("HTTP/1.1 204"), "{written}");
    let token =
        written.lines().find(|line| line.starts_with("perto-token: ")).unwrap_or_else(|| panic!("{written}"));
    let read = ask("GET", &format!("{token}\r\n"), "");
    assert!(read.starts_with("HTTP/1.1 200") && read.ends_with("\"tea\""), "{read}");
    drop(served);
    database.end().await;
}
