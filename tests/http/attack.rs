//! The service under attack: what strangers and tenants can take of its memory, its places and its time.
#![expect(clippy::print_stderr, reason = "figures of a run")]

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::command::{ADMIN_KEY, Served, key_of, seeded};
use crate::service::request;
use crate::support::engines::redis_url;
use crate::support::hostile::{Crowd, Takes, resident};
use crate::support::liar::{Answer, Liar, Lie};
use crate::support::servers::Folder;
use crate::support::wait::{ends, eventually, eventually_within};

const MIB: u64 = 1024 * 1024;
/// What all that is under way may take.
const PEAK: u64 = 256 * MIB;
/// What may be left of it a minute later.
const LEFT: u64 = 32 * MIB;

/// Hostile connections of a kind: `PERTO_HOSTILE` for more than a quick run has.
fn hostile() -> usize {
    std::env::var("PERTO_HOSTILE").ok().and_then(|count| count.parse().ok()).unwrap_or(2_500)
}

/// What a process takes while something runs, at most.
async fn peak(served: &Served, until: impl Future<Output = ()>) -> u64 {
    let (mut until, mut most) = (std::pin::pin!(until), 0);
    loop {
        most = most.max(resident(served.id()));
        if tokio::time::timeout(Duration::from_millis(100), &mut until).await.is_ok() {
            return most;
        }
    }
}

async fn gives_back(served: &Served, idle: u64) {
    let (began, left) = (Instant::now(), || resident(served.id()).saturating_sub(idle));
    let mut least = u64::MAX;
    eventually_within(Duration::from_secs(60), "the memory is given back", async || {
        least = least.min(left());
        tokio::time::sleep(Duration::from_millis(200)).await;
        left() <= LEFT
    })
    .await;
    eprintln!("back at idle + {} MiB after {:?}", left() / MIB, began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_takes_the_answer_takes_no_memory_and_leaves_none_taken() {
    let database = seeded();
    let a = Served::start(&database, "a");
    assert_eq!(request(&a, "GET", "/api/v1/companies/1", "", "").await.status, 200);
    let idle = resident(a.id());
    let asking = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut crowds: Vec<Crowd> = (1..=100).map(|host| Crowd::from(Ipv4Addr::new(127, 0, 1, host))).collect();
    let each = hostile().div_ceil(2 * crowds.len());
    let attack = async {
        for crowd in &mut crowds {
            crowd.join(&a.address, each, asking, Takes::Nothing).await;
            crowd.join(&a.address, each, asking, Takes::Drops).await;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    let most = peak(&a, attack).await;
    let held: usize = crowds.iter_mut().map(Crowd::held).sum();
    eprintln!("{held} held, idle {} MiB, at most {} MiB", idle / MIB, most / MIB);
    assert!(most <= idle + PEAK, "{} MiB of {}", most / MIB, idle / MIB);
    for crowd in crowds {
        crowd.leave().await;
    }
    gives_back(&a, idle).await;
}

/// A second, where nothing is in the way.
const AT_ONCE: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn strangers_keep_out_neither_probes_nor_those_who_have_a_key() {
    let database = seeded();
    let places = ["--admin-key", ADMIN_KEY, "--max-connections", "100"];
    let a = Served::start_with(&database, "a", &places);
    let key = format!("authorization: Bearer {}\r\n", key_of(&database, 2));
    let mut known = TcpStream::connect(&a.address).await.unwrap();
    let asking = format!("GET /api/v1/companies/2 HTTP/1.1\r\nhost: localhost\r\n{key}\r\n");
    let answered = async |stream: &mut TcpStream| {
        stream.write_all(asking.as_bytes()).await.unwrap();
        let mut read = [0; 12];
        ends("an answer", stream.read_exact(&mut read)).await.unwrap();
        let mut rest = [0; 4_096];
        let _ = ends("the rest", stream.read(&mut rest)).await.unwrap();
        read
    };
    assert_eq!(&answered(&mut known).await, b"HTTP/1.1 200");
    // Some say nothing, some are slow to ask, some take nothing of what they asked for.
    let mut crowd = Crowd::new();
    for asking in
        [&b""[..], b"GET / HTTP/1.1\r\nhost: localhost\r\nx-", b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"]
    {
        crowd.join(&a.address, 150, asking, Takes::Nothing).await;
        for probe in ["/livez", "/readyz"] {
            let began = Instant::now();
            assert_eq!(request(&a, "GET", probe, "", "").await.status, 200, "{probe}");
            assert!(began.elapsed() < AT_ONCE, "{probe}: {:?}", began.elapsed());
        }
        assert_eq!(request(&a, "GET", "/api/v1/companies/2", &key, "").await.status, 200);
    }
    assert_eq!(&answered(&mut known).await, b"HTTP/1.1 200", "whose place it was");
    let metrics = request(&a, "GET", "/metrics", "", "").await.text;
    let value = |series: &str| -> u64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(series)).unwrap();
        line.trim().parse().unwrap()
    };
    assert!(value("perto_connections{perto_kind=\"stranger\"}") <= 50, "{metrics}");
    assert!(value("perto_refused_total{perto_limit=\"too-many-strangers\"}") >= 400, "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_take_no_files_that_reads_need_where_files_are_few() {
    let database = seeded();
    let folder = Folder::new("files");
    let log = folder.0.join("log");
    // A shell can lower its own limit, for good: the instance can't raise it again.
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 220 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_perto-chat")]);
    limited.env("DATABASE_URL", &database.url).env("REDIS_URL", redis_url()).stdin(Stdio::null());
    let said = Stdio::from(std::fs::File::create(&log).unwrap());
    let a = Served::start_saying(limited, "a", &["--admin-key", ADMIN_KEY], said);
    let told = std::fs::read_to_string(&log).unwrap();
    assert!(told.contains("PERTO_MAX_CONNECTIONS") && told.contains("places=40"), "{told}");
    let mut crowd = Crowd::new();
    crowd.join(&a.address, 305, b"", Takes::Nothing).await;
    let admin = format!("authorization: Bearer {ADMIN_KEY}\r\n");
    for user in 1..=40 {
        let read = request(&a, "GET", &format!("/api/v1/users/{user}"), &admin, "").await;
        assert_eq!(read.status, 200, "{}", read.text);
    }
    let told = std::fs::read_to_string(&log).unwrap();
    assert!(!told.contains("could not be accepted"), "{told}");
}

#[test]
fn an_instance_without_files_for_clients_does_not_start() {
    let database = seeded();
    let mut limited = Command::new("sh");
    limited.args([
        "-c",
        "ulimit -n 100 && exec \"$0\" serve --listen 127.0.0.1:0",
        env!("CARGO_BIN_EXE_perto-chat"),
    ]);
    let output = limited.env("DATABASE_URL", &database.url).env("REDIS_URL", "").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("ulimit -n"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_nobody_takes_are_bounded_for_a_company_and_others_have_theirs() {
    let database = seeded();
    let limits = ["--admin-key", ADMIN_KEY, "--buffered-mib", "16"];
    let a = Served::start_with(&database, "a", &limits);
    let chat = "00000000-0000-4000-9000-0000000000e2";
    let mut postgres = PgConnection::connect(&database.url).await.unwrap();
    let sql = format!(
        "insert into chats (id, company_id) values ('{chat}', 2), ('00000000-0000-4000-9000-0000000000e3', 3);
         insert into messages (chat_id, sender, body)
         select c.id, 'user', repeat('\u{1f600}', 8000) from chats c, generate_series(1, 100)
         where c.id::text like '00000000-0000-4000-9000-0000000000e_'"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut postgres).await.unwrap();
    let key = |company| format!("authorization: Bearer {}\r\n", key_of(&database, company));
    let (greedy, modest) = (key(2), key(3));
    let page = format!("/api/v1/chats/{chat}/messages?limit=500");
    let first = request(&a, "GET", &page, &greedy, "").await;
    let messages = first.body["messages"].as_array().unwrap().len();
    assert!((30..=33).contains(&messages) && first.body["more"] == true, "{messages} of 32,000 bytes");
    assert!(first.text.len() <= 1024 * 1024 + 8 * 1024, "{}", first.text.len());
    let again = request(&a, "GET", &page, &greedy, "").await;
    assert_eq!((again.header("perto-tier"), &again.body), (Some("l1"), &first.body));
    // With what is older, page by page, all of it comes.
    let mut seen = messages;
    let mut last = first.body["messages"][messages - 1]["id"].clone();
    for _ in 0..4 {
        let next = request(&a, "GET", &format!("{page}&before={last}"), &greedy, "").await;
        let messages = next.body["messages"].as_array().unwrap();
        seen += messages.len();
        match messages.last() {
            Some(message) if next.body["more"] == true => last = message["id"].clone(),
            _ => break,
        }
    }
    assert_eq!(seen, 100);
    let mut crowd = Crowd::new();
    let asking = format!("GET {page} HTTP/1.1\r\nhost: localhost\r\n{greedy}\r\n");
    crowd.join(&a.address, 20, asking.as_bytes(), Takes::Nothing).await;
    eventually("the share is used up", async || {
        let refused = request(&a, "GET", &page, &greedy, "").await;
        refused.status == 429
            && refused.body["type"] == "urn:perto:problem:memory-of-company-full"
            && refused.header("retry-after").is_some()
    })
    .await;
    let other = "/api/v1/chats/00000000-0000-4000-9000-0000000000e3/messages?limit=500";
    assert_eq!(request(&a, "GET", other, &modest, "").await.status, 200);
    assert_eq!(request(&a, "GET", "/api/v1/companies/2", &greedy, "").await.status, 200, "what is small");
    let metrics = request(&a, "GET", "/metrics", "", "").await.text;
    assert!(
        !metrics.contains("perto_refused_total{perto_limit=\"memory-of-company-full\"} 0\n"),
        "{metrics}"
    );
    crowd.leave().await;
    eventually("there is memory again", async || request(&a, "GET", &page, &greedy, "").await.status == 200)
        .await;
}

/// Messages and lists without end: what is kept of them is bounded, and companies are read all the time.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_lying_redis_sends_takes_little_memory() {
    const LONG: usize = 480 << 20;
    let (database, liar) = (seeded(), Liar::start().await);
    let a = Served::start_on(&database.url, &liar.url(), "a", &[]);
    let read = async |id: u64| {
        let path = format!("/api/v1/companies/{}", 1 + id % 20);
        assert_eq!(request(&a, "GET", &path, "", "").await.status, 200);
    };
    read(0).await;
    let idle = resident(a.id());
    for lie in [
        Lie::Push(Answer::Text(LONG)),
        Lie::Push(Answer::Texts(100)),
        Lie::Push(Answer::Texts(200_000)),
        Lie::Push(Answer::Lists),
    ] {
        let told = liar.told();
        liar.tell(lie.clone());
        let attack = async {
            let began = Instant::now();
            for id in 0.. {
                read(id).await;
                if began.elapsed() > Duration::from_secs(2) {
                    return;
                }
            }
        };
        let most = peak(&a, attack).await;
        let told = liar.told() - told;
        eprintln!("{lie:?}: {} MiB told, at most idle + {} MiB", told / MIB, most.saturating_sub(idle) / MIB);
        assert!(told > MIB, "{lie:?}: nobody listened");
        assert!(most <= idle + PEAK, "{lie:?}: {} MiB of {}", most / MIB, idle / MIB);
        liar.tell(Lie::None);
    }
}
