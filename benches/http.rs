//! The service beside a bare axum handler that returns the same bytes, each a process of its own, in turns in one run; and
//! what its readers see while Redis goes down and comes back.
//!
//! `make bench ARGS='--bench http'`, or with `DATABASE_URL` and `REDIS_URL` set: `cargo bench --bench http`. Prints
//! Markdown, and with `--report FILE` writes the same with a plot of the outage as a page; with `BENCH_JSON=FILE` also appends a line of
//! JSON for each bar. The load comes from this process, so that all share the machine; it ends by itself.
#![allow(missing_docs, clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a bench")]
#![allow(clippy::panic, clippy::unwrap_used, clippy::print_stdout, unreachable_pub, reason = "a bench")]
#![allow(clippy::missing_panics_doc, clippy::cast_sign_loss, dead_code, reason = "a bench")]
#![expect(clippy::disallowed_methods, reason = "its tasks end with it")]

mod course;
mod setup;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use course::Course;
use perto::Histogram;
use perto::proxy::{Fault, FaultProxy};
use perto_cli::plot::{self, Band, Chart, Page, Table};
use setup::{median, report};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CONNECTIONS: usize = 64;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(2);
const PHASE: Duration = Duration::from_secs(4);
const PATH: &str = "/api/v1/chats/00000000-0000-4000-8000-000000000001/messages";
const ADMIN: &str = "the admin of this bench has this key, and nobody else";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match &arguments[..] {
        [first, body, ..] if first == "bare" => runtime.block_on(bare(body.clone())),
        _ => runtime.block_on(bench(page_path(&arguments))),
    }
}

/// Where the page goes, if there is to be one. That it can't be written is said at once.
fn page_path(arguments: &[String]) -> Option<PathBuf> {
    let at = arguments.iter().position(|argument| argument == "--report")?;
    // `cargo bench` adds an option of its own.
    let file = arguments.get(at + 1).filter(|file| !file.starts_with('-')).expect("--report FILE");
    if let Err(error) = plot::check(file.as_ref()) {
        panic!("--report: {file} can't be written: {error}");
    }
    Some(file.into())
}

/// What the service is compared with.
async fn bare(body: String) {
    let body = Bytes::from(std::fs::read(body).unwrap());
    let handler = get(async move || ([(CONTENT_TYPE, "application/json")], body));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("bare serves on http://{}/", listener.local_addr().unwrap());
    axum::serve(listener, axum::Router::new().route(PATH, handler)).await.unwrap();
}

/// A server in a process of its own, ended with it.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit("http://").next().unwrap().trim_end_matches('/').to_owned();
        Self { child, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn perto(database: &str, redis: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perto-chat"));
    command.env("DATABASE_URL", database).env("REDIS_URL", redis).env("RUST_LOG", "error");
    command
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn get_request(path: &str, headers: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: bench\r\n{headers}\r\n").into_bytes()
}

/// Reads one response; its head is returned, its body's length is known by then.
async fn response(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<(usize, usize)> {
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let Some(head) = buffer.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) else {
            continue;
        };
        let text = std::str::from_utf8(&buffer[..head]).unwrap();
        let length =
            text.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let whole = head + length.unwrap_or(0);
        while buffer.len() < whole {
            if stream.read_buf(buffer).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        return Ok((head, whole));
    }
}

/// Reads for as long as it may, on many connections. Every answer must be as long as the third.
async fn load(address: &str, request: &[u8], length: Duration) -> f64 {
    let ending = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let readers: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (address, request, ending) = (address.to_owned(), request.to_vec(), Arc::clone(&ending));
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(&address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (mut buffer, mut answers) = (Vec::with_capacity(64 << 10), 0_u64);
                // The first may come from another tier, and say so.
                let mut wanted = 0;
                for _ in 0..3 {
                    stream.write_all(&request).await.unwrap();
                    wanted = response(&mut stream, &mut buffer).await.unwrap().1;
                }
                while !ending.load(Ordering::Relaxed) {
                    stream.write_all(&request).await.unwrap();
                    let mut read = 0;
                    while read < wanted {
                        buffer.clear();
                        read += match stream.read_buf(&mut buffer).await.unwrap() {
                            0 => panic!("{address} ended a connection, {read} of {wanted}"),
                            bytes => bytes,
                        };
                    }
                    assert_eq!(read, wanted, "another answer");
                    answers += 1;
                }
                answers
            })
        })
        .collect();
    tokio::time::sleep(length).await;
    ending.store(true, Ordering::Relaxed);
    let elapsed = began.elapsed();
    let mut answers = 0;
    for reader in readers {
        answers += reader.await.unwrap();
    }
    answers as f64 / elapsed.as_secs_f64()
}

async fn bench(page: Option<PathBuf>) {
    let server = std::env::var("DATABASE_URL").unwrap();
    let redis = std::env::var("REDIS_URL").unwrap();
    let name = format!("perto_bench_http_{}", std::process::id());
    let database = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
    run(perto(&database, "").arg("migrate"));
    let amounts = ["--companies", "20", "--users", "40", "--contacts", "400", "--messages", "200000"];
    run(perto(&database, "").arg("seed").args(amounts));
    let key = run(perto(&database, "").args(["keys", "create", "--company", "2"]));
    let rates = throughput(&database, &redis, &key).await;
    let (phases, latency) = outage(&database, &redis, &key).await;
    if let Some(path) = page {
        let title = "The service over HTTP".to_owned();
        let page = Page { title, verdict: None, tables: vec![rates, phases], charts: vec![latency] };
        page.write(&path).expect("--report");
    }
    let mut connection = PgConnection::connect(&server).await.unwrap();
    let drop_it = format!("drop database {name} with (force)");
    sqlx::raw_sql(AssertSqlSafe(drop_it)).execute(&mut connection).await.unwrap();
}

async fn throughput(database: &str, redis: &str, key: &str) -> Table {
    let closed = ["serve", "--listen", "127.0.0.1:0", "--rate-limit", "0", "--admin-key", ADMIN];
    let perto = Server::start(perto(database, redis).args(closed));
    let authorization = format!("authorization: Bearer {key}\r\n");
    // The body and the tag that it answers with, from L1.
    let mut stream = TcpStream::connect(&perto.address).await.unwrap();
    let (mut buffer, mut head, mut body) = (Vec::new(), String::new(), Vec::new());
    for _ in 0..100 {
        stream.write_all(&get_request(PATH, &authorization)).await.unwrap();
        let (start, end) = response(&mut stream, &mut buffer).await.unwrap();
        (head, body) = (String::from_utf8(buffer[..start].to_vec()).unwrap(), buffer[start..end].to_vec());
        if head.contains("perto-tier: l1") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(head.contains("perto-tier: l1"), "{head}");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let file = std::env::temp_dir().join(format!("perto-bench-{}.json", std::process::id()));
    std::fs::write(&file, &body).unwrap();
    let bare = Server::start(Command::new(std::env::current_exe().unwrap()).arg("bare").arg(&file));
    let small = format!("{PATH}?limit=1");
    let cases = [
        ("bare axum, the same bytes", &bare.address, get_request(PATH, &authorization)),
        ("messages from L1", &perto.address, get_request(PATH, &authorization)),
        ("messages, `limit=1`", &perto.address, get_request(&small, &authorization)),
        (
            "messages, 304",
            &perto.address,
            get_request(PATH, &format!("{authorization}if-none-match: {tag}\r\n")),
        ),
        ("company from L1", &perto.address, get_request("/api/v1/companies/2", &authorization)),
        ("`/livez`, no cache", &perto.address, get_request("/livez", "")),
    ];
    let mut rates = vec![Vec::new(); cases.len()];
    for round in 0..ROUNDS {
        for (at, (_, address, request)) in cases.iter().enumerate() {
            let rate = load(address, request, ROUND).await;
            // The first round warms up.
            if round > 0 {
                rates[at].push(rate);
            }
        }
    }
    let caption = format!(
        "{} bytes, {CONNECTIONS} connections, {} rounds of {ROUND:?} each in turn",
        body.len(),
        ROUNDS - 1
    );
    let ratios =
        |at: usize| -> Vec<f64> { rates[at].iter().zip(&rates[0]).map(|(rate, bare)| rate / bare).collect() };
    let row = |at: usize, name: &str| {
        [name.to_owned(), format!("{:.0}", median(&rates[at])), format!("{:.2} ×", median(&ratios(at)))]
            .into()
    };
    let rows = cases.iter().enumerate().map(|(at, (name, ..))| row(at, name)).collect();
    report("http_hit_vs_bare", &ratios(1));
    report("http_hit_limit_1_vs_bare", &ratios(2));
    drop(std::fs::remove_file(file));
    printed(Table { caption, columns: ["GET", "requests/s", "ratio"].map(str::to_owned).into(), rows })
}

/// As Markdown.
fn printed(table: Table) -> Table {
    println!("\n{}\n", table.caption);
    println!("| {} |\n| ---{} |", table.columns.join(" | "), " | ---:".repeat(table.columns.len() - 1));
    for row in &table.rows {
        println!("| {} |", row.join(" | "));
    }
    table
}

/// Readers at a moderate rate, over many chats, while Redis is cut off for a while.
async fn outage(database: &str, redis: &str, key: &str) -> (Table, Chart) {
    let at = redis.split("://").nth(1).unwrap().split('/').next().unwrap().rsplit('@').next().unwrap();
    let proxy = FaultProxy::start(at).await.unwrap();
    let through = redis.replacen(at, &proxy.address().to_string(), 1);
    let closed =
        ["serve", "--listen", "127.0.0.1:0", "--rate-limit", "0", "--admin-key", ADMIN, "--l1-mib", "1"];
    let perto = Server::start(perto(database, &through).args(closed));
    let phases = [
        ("up", Fault::None, PHASE),
        ("down", Fault::Cut, PHASE),
        ("silent", Fault::BlackHole, PHASE),
        ("back", Fault::None, PHASE),
    ];
    let warming = Course::new(PHASE);
    paced(&perto.address, key, Duration::from_secs(3), &warming).await;
    let course = Course::new(PHASE * phases.len() as u32);
    let (mut rows, mut bands) = (Vec::new(), Vec::new());
    for (phase, fault, length) in phases {
        let from = course.begun.elapsed().as_secs_f64();
        proxy.set(fault);
        let (times, failed) = paced(&perto.address, key, length, &course).await;
        let to = course.begun.elapsed().as_secs_f64();
        if fault != Fault::None {
            bands.push(Band { name: format!("Redis is {phase}"), from, to, healed: to });
        }
        let ms = |time: Duration, digits: usize| format!("{:.digits$}", time.as_secs_f64() * 1e3);
        rows.push(vec![
            phase.to_owned(),
            times.count().to_string(),
            ms(times.quantile(0.5), 2),
            ms(times.quantile(0.99), 2),
            ms(times.max(), 1),
            failed.to_string(),
        ]);
    }
    let columns = ["Redis", "reads", "p50 ms", "p99 ms", "longest ms", "not 200"].map(str::to_owned).into();
    let caption = "8 readers of 500 chats, an L1 of 1 MiB".to_owned();
    (printed(Table { caption, columns, rows }), course.chart(bands))
}

async fn paced(address: &str, key: &str, length: Duration, course: &Arc<Course>) -> (Arc<Histogram>, u64) {
    let times = Arc::new(Histogram::default());
    let end = Instant::now() + length;
    let readers: Vec<_> = (0..8_u64)
        .map(|reader| {
            let (address, key, times) = (address.to_owned(), key.to_owned(), Arc::clone(&times));
            let course = Arc::clone(course);
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (mut buffer, mut failed, mut n) = (Vec::new(), 0, reader);
                let mut pace = tokio::time::interval(Duration::from_millis(8));
                while Instant::now() < end {
                    pace.tick().await;
                    // Chats of company 2 are every twentieth.
                    n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let chat = 1 + 20 * ((n >> 33) % 500);
                    let path = format!("/api/v1/chats/00000000-0000-4000-8000-{chat:012x}/messages");
                    let began = Instant::now();
                    stream
                        .write_all(&get_request(&path, &format!("authorization: Bearer {key}\r\n")))
                        .await
                        .unwrap();
                    response(&mut stream, &mut buffer).await.unwrap();
                    let (took, wrong) = (began.elapsed(), !buffer.starts_with(b"HTTP/1.1 200"));
                    times.record(took);
                    course.record(began, took, wrong);
                    failed += u64::from(wrong);
                }
                failed
            })
        })
        .collect();
    let mut failed = 0;
    for reader in readers {
        failed += reader.await.unwrap();
    }
    (times, failed)
}
