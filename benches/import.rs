//! An import of a million contacts through the running service, beside a bare `COPY` and `insert … on conflict` of the same
//! file, in turns in one run; what the service's process takes of memory meanwhile; and one whose instance is killed.
//!
//! `make bench ARGS='--bench import'`, or with `DATABASE_URL` and `REDIS_URL` set: `cargo bench --bench import`. Makes a
//! database of its own and drops it. Prints Markdown. `ROWS` and `ROUNDS` in the environment make it smaller or longer.
#![allow(missing_docs, clippy::cast_precision_loss, reason = "a bench")]
#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    unreachable_pub,
    dead_code,
    reason = "a bench"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::postgres::PgPoolCopyExt;
use sqlx::{AssertSqlSafe, PgPool};

const WATCHED: [(&str, &str); 2] = [("contact", "id"), ("contact_by_phone", "company_id || ':' || phone")];

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(run());
}

async fn run() {
    let setting =
        |name: &str, or: usize| std::env::var(name).map_or(or, |text| text.parse().expect("a number"));
    let (rows, rounds) = (setting("ROWS", 1_000_000), setting("ROUNDS", 2));
    let bed = Bed::make().await;
    let file = generated(rows);
    let rejected = (0..rows).filter(|row| is_bad(*row)).count();
    println!("{rows} rows, {:.1} MB, {rejected} of them bad; {rounds} rounds\n", file.len() as f64 / 1e6);
    println!("| | seconds | rows a second | of the bare one |\n| --- | ---: | ---: | ---: |");
    let mut peak: f64 = 0.0;
    for _ in 0..rounds {
        bed.empty().await;
        let bare = bed.bare(&file, rows, true).await;
        bed.empty().await;
        let unwatched = bed.bare(&file, rows, false).await;
        bed.empty().await;
        let imported = bed.import(&file, rows, rejected).await;
        peak = peak.max(imported.memory);
        let line = |what: &str, took: Duration, ratio: f64| {
            let seconds = took.as_secs_f64();
            println!("| {what} | {seconds:.2} | {:.0} | {ratio:.2} × |", rows as f64 / seconds);
        };
        let of_bare = |took: Duration| bare.as_secs_f64() / took.as_secs_f64();
        line("bare `COPY` and upsert, watched", bare, 1.0);
        line("bare `COPY` and upsert, no triggers", unwatched, of_bare(unwatched));
        line("import, upload and work", imported.all, of_bare(imported.all));
        line("import, upload", imported.upload, of_bare(imported.upload));
        line("import, work", imported.all - imported.upload, of_bare(imported.all - imported.upload));
    }
    println!("\nThe service's process: at most {peak:.1} MiB above what it had idle.");
    bed.empty().await;
    bed.killed(&file, rows, rejected).await;
    bed.pool.close().await;
    sql(&PgPool::connect(&bed.server).await.unwrap(), &format!("drop database {} with (force)", bed.name))
        .await;
}

const fn is_bad(row: usize) -> bool {
    row % 100 == 50
}

/// Phones are unique, so that one statement can upsert them all.
fn generated(rows: usize) -> Vec<u8> {
    let mut file = b"phone,name,email\n".to_vec();
    for row in 0..rows {
        let phone = if is_bad(row) { "12".to_owned() } else { format!("+35191{:07}", row * 7 % 10_000_000) };
        writeln!(file, "{phone},Name of {row},person{row}@example.com").unwrap();
    }
    file
}

async fn sql(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(pool)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// What an import took.
struct Imported {
    upload: Duration,
    all: Duration,
    /// MiB above idle.
    memory: f64,
}

/// A database with the service's tables.
struct Bed {
    server: String,
    name: String,
    url: String,
    pool: PgPool,
}

impl Bed {
    async fn make() -> Self {
        let server = std::env::var("DATABASE_URL").expect("DATABASE_URL is not set: run `make bench`");
        let name = format!("bench_import_{}", std::process::id());
        let url = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
        for arguments in [
            &["migrate"][..],
            &["seed", "--companies", "1", "--users", "0", "--contacts", "0", "--messages", "0"],
        ] {
            assert!(perto(&url).args(arguments).stdout(Stdio::null()).status().unwrap().success());
        }
        for (cache, key) in WATCHED {
            let watch = ["watch", "contacts", "--cache", cache, "--key", key];
            assert!(perto(&url).args(watch).stdout(Stdio::null()).status().unwrap().success());
        }
        let pool = PgPool::connect(&url).await.unwrap();
        Self { server, name, url, pool }
    }

    async fn empty(&self) {
        sql(&self.pool, "truncate contacts, imports cascade; delete from perto.invalidation; checkpoint")
            .await;
    }

    /// The file as one `COPY` and one statement, in one transaction.
    async fn bare(&self, file: &[u8], rows: usize, watched: bool) -> Duration {
        // With the service's own triggers, or with none.
        if !watched {
            sql(&self.pool, "alter table contacts disable trigger user").await;
        }
        let began = Instant::now();
        let mut connection = self.pool.acquire().await.unwrap();
        sqlx::raw_sql("begin; create temp table bare (phone text, name text, email text) on commit drop")
            .execute(&mut *connection)
            .await
            .unwrap();
        let mut copy = connection.copy_in_raw("copy bare from stdin (format csv, header)").await.unwrap();
        for piece in file.chunks(1 << 20) {
            copy.send(piece).await.unwrap();
        }
        copy.finish().await.unwrap();
        let upsert = "insert into contacts as c (company_id, phone, name, email) \
             select 1, phone, name, email from bare where phone ~ '^\\+[1-9][0-9]{1,14}$' \
             on conflict (company_id, phone) do update set name = excluded.name, email = excluded.email; commit";
        sqlx::raw_sql(upsert).execute(&mut *connection).await.unwrap();
        let took = began.elapsed();
        drop(connection);
        if !watched {
            let always = "do $$ declare t name; begin for t in select tgname from pg_trigger \
                 where tgrelid = 'contacts'::regclass and not tgisinternal loop \
                 execute format('alter table contacts enable always trigger %I', t); end loop; end $$";
            sql(&self.pool, always).await;
        }
        assert_eq!(self.count("contacts").await, rows - (0..rows).filter(|row| is_bad(*row)).count());
        took
    }

    async fn count(&self, of: &str) -> usize {
        let sql = format!("select count(*) from {of}");
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool).await.unwrap();
        usize::try_from(count).unwrap()
    }

    async fn import(&self, file: &[u8], rows: usize, rejected: usize) -> Imported {
        let served = Served::start(&self.url, "a");
        let idle = served.memory("VmRSS");
        let began = Instant::now();
        let (path, upload) = served.upload(file);
        let uploaded = served.memory("VmHWM");
        let seen = served.ended(&path).await;
        let all = began.elapsed();
        assert_eq!(
            (seen["accepted"].as_u64(), seen["rejected"].as_u64()),
            (Some((rows - rejected) as u64), Some(rejected as u64)),
            "{seen}"
        );
        assert_eq!(self.count("contacts").await, rows - rejected);
        let peak = served.memory("VmHWM");
        println!(
            "<!-- idle {idle:.1} MiB, most after the upload {uploaded:.1}, most at the end {peak:.1}; {} rows a second by the service -->",
            seen["rowsPerSecond"]
        );
        Imported { upload, all, memory: peak - idle }
    }

    async fn killed(&self, file: &[u8], rows: usize, rejected: usize) {
        let first = Served::start(&self.url, "a");
        let (path, _) = first.upload(file);
        let at = loop {
            let done = first.get(&path)["rows"].as_u64().unwrap();
            if done >= (rows / 3) as u64 {
                break done;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        drop(first); // SIGKILL
        let second = Served::start(&self.url, "b");
        let began = Instant::now();
        let seen = second.ended(&path).await;
        println!(
            "\nKilled with {at} rows written; another instance had done the rest {:.1} s after its start: {} accepted, {} rejected.",
            began.elapsed().as_secs_f64(),
            seen["accepted"],
            seen["rejected"]
        );
        assert_eq!(
            (seen["accepted"].as_u64(), seen["rejected"].as_u64()),
            (Some((rows - rejected) as u64), Some(rejected as u64)),
            "{seen}"
        );
        sql(&self.pool, "create table expected (phone text, name text, email text)").await;
        let mut copy = self.pool.copy_in_raw("copy expected from stdin (format csv, header)").await.unwrap();
        copy.send(file).await.unwrap();
        copy.finish().await.unwrap();
        let good = "select phone, name, email from expected where phone like '+%'";
        let there = "select phone, name, email from contacts";
        let differ =
            self.count(&format!("(({good} except {there}) union all ({there} except {good})) d")).await;
        assert_eq!(
            (differ, self.count("contacts").await, self.count("import_rejects").await),
            (0, rows - rejected, rejected)
        );
        println!("The contacts are those of the file, to the row; nothing is there twice.");
    }
}

fn perto(database: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perto-chat"));
    command.env("DATABASE_URL", database).stdin(Stdio::null());
    command
}

/// An instance, killed at the end.
struct Served {
    child: Child,
    address: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Served {
    fn start(database: &str, name: &str) -> Self {
        let mut child = perto(database)
            .args(["serve", "--listen", "127.0.0.1:0", "--instance", name])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit("http://").next().unwrap().trim_end_matches('/').to_owned();
        let served = Self { child, address };
        // Warm, and idle.
        for _ in 0..100 {
            served.get("/api/v1/companies/1");
        }
        served
    }

    /// MiB, by the kernel.
    fn memory(&self, what: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap_or(": 0 kB");
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    fn send(&self, request: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        let head =
            format!("{request} HTTP/1.0\r\ncontent-type: text/csv\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    fn get(&self, path: &str) -> Value {
        serde_json::from_str(&self.send(&format!("GET {path}"), b"")).unwrap()
    }

    fn upload(&self, file: &[u8]) -> (String, Duration) {
        let began = Instant::now();
        let path = "/api/v1/companies/1/contacts/imports";
        let answer = self.send(&format!("POST {path}"), file);
        let import: Value = serde_json::from_str(&answer).unwrap();
        (format!("{path}/{}", import["id"].as_str().unwrap_or_else(|| panic!("{answer}"))), began.elapsed())
    }

    async fn ended(&self, path: &str) -> Value {
        loop {
            let seen = self.get(path);
            if !seen["finishedAt"].is_null() {
                assert_eq!(seen["state"], "done", "{seen}");
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
