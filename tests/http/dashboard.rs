//! The dashboard: its files, and the stream of figures. What a browser makes of them, `make dashboard` tries.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::command::{ADMIN_KEY, Served, key_of, perto, seeded, succeed};
use crate::service::{request, two_instances};
use crate::support::engines::redis_url;
use crate::support::postgres::PrivatePostgres;
use crate::support::redis::PrivateRedis;
use crate::support::wait::{ends, eventually};

const STREAM: &str = "/api/v1/cache/stream";
/// Streams at once.
const MOST: usize = 64;

/// Someone who watches.
struct Watching {
    stream: TcpStream,
    text: String,
}

impl Watching {
    async fn begin(served: &Served, headers: &str) -> Self {
        let mut stream = TcpStream::connect(&served.address).await.unwrap();
        let request =
            format!("GET {STREAM} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut watching = Self { stream, text: String::new() };
        let head = watching.until("\r\n\r\n").await.expect("a response").to_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert!(head.contains("content-type: text/event-stream"), "{head}");
        assert!(head.contains("cache-control: no-store"), "{head}");
        watching
    }

    /// None where it ended.
    async fn until(&mut self, mark: &str) -> Option<String> {
        loop {
            if let Some(at) = self.text.find(mark) {
                let rest = self.text.split_off(at + mark.len());
                return Some(std::mem::replace(&mut self.text, rest));
            }
            let mut piece = vec![0; 65_536];
            let read =
                ends("the stream", self.stream.read(&mut piece)).await.ok().filter(|read| *read > 0)?;
            self.text.push_str(str::from_utf8(&piece[..read]).unwrap());
        }
    }

    /// The next event; none where the stream ended.
    async fn event(&mut self) -> Option<(String, Value)> {
        loop {
            let text = self.until("\n\n").await?;
            let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
            if let (Some(event), Some(data)) = (line("event: "), line("data: ")) {
                return Some((event.to_owned(), serde_json::from_str(data).unwrap()));
            }
        }
    }

    /// Waits until the stream has ended.
    async fn end(&mut self) {
        ends("the stream's end", async { while self.event().await.is_some() {} }).await;
    }

    async fn next(&mut self, wanted: &str) -> Value {
        let (event, data) = self.event().await.expect("an event");
        assert_eq!(event, wanted, "{data}");
        data
    }

    /// The first frame of which something is so.
    async fn first(&mut self, what: &str, mut is_so: impl FnMut(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let frame = self.next("now").await;
            if is_so(&frame) {
                return frame;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "never: {what}; last {frame}");
        }
    }
}

fn instance<'a>(frame: &'a Value, name: &str) -> Option<&'a Value> {
    frame["now"]["instances"].as_array().unwrap().iter().find(|one| one["name"] == name)
}

fn admin() -> String {
    format!("authorization: Bearer {ADMIN_KEY}\r\n")
}

/// What a page or a script asks for.
fn wanted(text: &str) -> Vec<String> {
    let quoted = text.split('"').filter(|part| part.starts_with("/web/") || part.starts_with("./"));
    quoted.map(|part| part.replace("./", "/web/")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_and_all_its_files_come_from_here_and_are_light() {
    let database = seeded();
    let a = Served::start_closed(&database, "a");
    let page = request(&a, "GET", "/", "", "").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    for link in ["/docs/", "/openapi.json", "/readyz"] {
        assert!(page.text.contains(&format!("href=\"{link}\"")), "{link}");
        assert_eq!(request(&a, "GET", link, "", "").await.status, 200, "{link}");
    }
    let policy = page.header("content-security-policy").unwrap();
    for part in ["default-src 'none'", "script-src 'self';", "connect-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("://"), "{policy}");
    let (mut weight, mut files, mut seen) = (page.text.len(), wanted(&page.text), 0);
    while seen < files.len() {
        let file = request(&a, "GET", &files[seen], "", "").await;
        assert_eq!(file.status, 200, "{}", files[seen]);
        assert_eq!(file.header("content-security-policy"), Some(policy), "{}", files[seen]);
        assert_eq!(file.header("x-content-type-options"), Some("nosniff"), "{}", files[seen]);
        for away in file.text.split("://").skip(1) {
            let known = ["www.w3.org/2000/svg", "github.com/leeoniya/uPlot"];
            assert!(known.iter().any(|known| away.starts_with(known)), "{}: {away:.60}", files[seen]);
        }
        for more in wanted(&file.text) {
            if !files.contains(&more) {
                files.push(more);
            }
        }
        weight += file.text.len();
        seen += 1;
    }
    assert!(seen >= 12, "{files:?}");
    assert!(!page.text.contains("://"), "{}", page.text);
    // As they are. The bar is for what is compressed.
    assert!(weight < 150_000, "{weight} bytes");
    for nothing in ["/web/", "/web/nothing.js", "/web/../Cargo.toml", "/web/vendor/"] {
        assert_eq!(request(&a, "GET", nothing, "", "").await.status, 404, "{nothing}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_the_browser_has_are_not_sent_again() {
    let database = seeded();
    let a = Served::start_closed(&database, "a");
    for path in ["/", "/web/dashboard.js"] {
        let first = request(&a, "GET", path, "", "").await;
        let tag = first.header("etag").unwrap().to_owned();
        assert_eq!(first.header("cache-control"), Some("no-cache"));
        for known in [tag.clone(), format!("\"other\", W/{tag}")] {
            let again = request(&a, "GET", path, &format!("if-none-match: {known}\r\n"), "").await;
            assert_eq!(
                (again.status, again.text.as_str(), again.header("etag")),
                (304, "", Some(&*tag)),
                "{path}"
            );
        }
        assert_eq!(request(&a, "GET", path, "if-none-match: \"other\"\r\n", "").await.status, 200, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_are_streamed_to_admins_and_to_nobody_else() {
    let database = seeded();
    let a = Served::start_closed(&database, "a");
    let tenant = format!("authorization: Bearer {}\r\n", key_of(&database, 1));
    for (headers, status) in [("", 401), ("authorization: Bearer wrong\r\n", 401), (&*tenant, 403)] {
        let refused = request(&a, "GET", STREAM, headers, "").await;
        assert_eq!((refused.status, refused.body["status"].as_u64()), (status, Some(u64::from(status))));
        assert!(!refused.text.contains("instances"), "{}", refused.text);
    }
    let mut watching = Watching::begin(&a, &admin()).await;
    watching.next("history").await;
    assert_eq!(watching.next("now").await["now"]["instance"], "a");
}

#[tokio::test(flavor = "multi_thread")]
async fn first_comes_the_past_and_then_a_point_a_second_with_what_the_caches_do() {
    let (_database, a, b) = two_instances();
    let mut watching = Watching::begin(&a, "").await;
    let history = watching.next("history").await;
    assert!(history["fine"].is_array() && history["coarse"].is_array(), "{history}");
    let first = watching.first("both are there", |frame| instance(frame, "b").is_some()).await;
    assert_eq!(first["now"]["boundMs"], 1_000.0);
    for name in ["a", "b"] {
        let one = instance(&first, name).unwrap();
        assert!(one["leaseAgeMs"].as_f64() <= Some(1_000.0), "{one}");
    }
    let at = first["now"]["caches"].as_array().unwrap().iter().position(|cache| cache["name"] == "company");
    let at = at.expect("the cache of companies");
    let (mut point, mut times) = (Value::Null, Vec::new());
    let began = Instant::now();
    while point.is_null() {
        assert!(began.elapsed() < Duration::from_secs(60), "no point with all that was read");
        for id in 1..=20 {
            for served in [&a, &b] {
                request(served, "GET", &format!("/api/v1/companies/{id}"), "", "").await;
            }
        }
        let frame = watching.next("now").await;
        times.push(frame["fine"]["t"].as_i64().unwrap());
        let fine = &frame["fine"];
        let there = fine["reads"][at][0].as_f64() > Some(0.0)
            && fine["latency"][2].is_array()
            && fine["staleness"].is_array();
        if there {
            point = fine.clone();
        }
    }
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    for field in ["staleness", "propagation"] {
        let [low, high] = [0, 1].map(|at| point[field][at].as_f64().unwrap_or_default());
        assert!(low <= high, "{field} of {point}");
    }
    assert!(point["staleness"][1].as_f64() <= Some(1_070.0), "within the bound and a bucket: {point}");
    assert!(point["latency"][2][0].as_f64() > Some(1.0), "a load takes microseconds: {point}");
    let frame = watching.first("rates of ten seconds", |frame| {
        let rates = &frame["now"]["caches"][at]["rates"];
        let of_b = &instance(frame, "b").unwrap()["reads"];
        rates[0].as_f64() > Some(0.0) && of_b[0].as_f64() > Some(0.0)
    });
    let frame = frame.await;
    assert!(frame["now"]["caches"][at]["loads"].as_u64() >= Some(1), "{frame}");
    // Who comes later is told what was seen.
    let mut later = Watching::begin(&a, "").await;
    let history = later.next("history").await;
    let fine = history["fine"].as_array().unwrap();
    assert!(fine.contains(&point), "{history}");
    assert!(!history["coarse"].as_array().unwrap().is_empty(), "{history}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_loses_redis_is_shown_by_the_others_and_so_is_its_return() {
    let database = seeded();
    let mut redis = PrivateRedis::start().await;
    let a = Served::start_on(&database.url, &redis_url(), "a", &[]);
    let b = Served::start_on(&database.url, &redis.url(), "b", &[]);
    let mut watching = Watching::begin(&a, "").await;
    watching.next("history").await;
    let is = |frame: &Value, name: &str, state: &str| {
        instance(frame, name).is_some_and(|one| one["state"] == state)
    };
    let coherent = |frame: &Value| is(frame, "a", "coherent") && is(frame, "b", "coherent");
    let first = watching.first("both are coherent", coherent).await;
    let id: String =
        instance(&first, "b").unwrap()["id"].as_str().unwrap().replace('-', "").chars().take(8).collect();
    assert_eq!(first["fine"]["states"], json!({}));
    redis.kill();
    let frame = watching.first("b is isolated", |frame| is(frame, "b", "isolated")).await;
    assert!(is(&frame, "a", "coherent"), "{frame}");
    assert_eq!(instance(&frame, "b").unwrap()["busUp"], false);
    assert_eq!(frame["fine"]["states"], json!({ id: "i" }));
    let alerts = watching.first("an alert", |frame| {
        let alerts = frame["now"]["alerts"].as_array().unwrap();
        alerts.iter().any(|alert| alert["name"] == "instance-not-coherent" && alert["instance"] == "b")
    });
    alerts.await;
    redis.restart_empty().await;
    watching.first("both are coherent again", coherent).await;
    // One that is killed is silent, and then not there.
    drop(b);
    watching.first("b is silent", |frame| is(frame, "b", "silent")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_service_ends_the_streams_at_once() {
    let (_database, a, _b) = two_instances();
    let mut watching = Watching::begin(&a, "").await;
    watching.next("history").await;
    watching.next("now").await;
    let began = Instant::now();
    let ending = tokio::task::spawn_blocking(move || a.end());
    watching.end().await;
    assert!(ending.await.unwrap(), "ended well");
    // Requests in progress have ten seconds.
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_may_watch_and_who_goes_makes_room() {
    let database = seeded();
    let a = Served::start(&database, "a");
    let mut all = Vec::new();
    for _ in 0..MOST {
        all.push(Watching::begin(&a, "").await);
    }
    let refused = request(&a, "GET", STREAM, "", "").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("10")), "{}", refused.text);
    for watching in &mut all {
        watching.next("history").await;
        watching.next("now").await;
    }
    all.pop();
    let mut last = None;
    eventually("there is room", async || {
        let mut stream = TcpStream::connect(&a.address).await.unwrap();
        let asked = format!("GET {STREAM} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        stream.write_all(asked.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        ends("a status", stream.read_exact(&mut status)).await.unwrap();
        let admitted = &status == b"HTTP/1.1 200";
        last = admitted.then_some(stream);
        admitted
    })
    .await;
    assert_eq!(request(&a, "GET", STREAM, "", "").await.status, 503, "{MOST} and no more");
    drop(last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_no_slow_request_and_outlasts_the_limit_of_one() {
    let database = seeded();
    let limits = ["--request-timeout", "1s", "--alert-response-time", "500ms"];
    let a = Served::start_with(&database, "a", &limits);
    let mut watching = Watching::begin(&a, "").await;
    watching.next("history").await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2_500) {
        watching.next("now").await;
    }
    drop(watching);
    let shown = request(&a, "GET", "/api/v1/cache/instances", "", "").await.body;
    assert_eq!(shown[0]["requests"]["lastMinute"]["slow"], 0, "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_needed_no_key_ends_when_there_is_one() {
    let database = seeded();
    let a = Served::start(&database, "a");
    let mut watching = Watching::begin(&a, "").await;
    watching.next("history").await;
    key_of(&database, 1);
    watching.end().await;
    assert_eq!(request(&a, "GET", STREAM, "", "").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_postgres_the_stream_goes_on_and_says_that_it_is_alone() {
    let mut server = PrivatePostgres::start().await;
    succeed(perto(&server.url("service"), "").arg("migrate"));
    let a = Served::start_on(&server.url("service"), &redis_url(), "a", &[]);
    let mut watching = Watching::begin(&a, "").await;
    watching.next("history").await;
    watching.first("it is not alone", |frame| frame["now"]["alone"] == false).await;
    server.kill();
    let frame = watching.first("it is alone", |frame| frame["fine"]["alone"] == true).await;
    assert_eq!((&frame["now"]["alone"], &frame["now"]["imports"]), (&json!(true), &Value::Null));
    watching.first("it has no lease", |frame| instance(frame, "a").unwrap()["state"] == "unverified").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_are_shown_while_they_run_and_for_a_moment_after() {
    let database = seeded();
    let a = Served::start(&database, "a");
    let mut watching = Watching::begin(&a, "").await;
    watching.next("history").await;
    let rows: String = (0..50).map(|n| format!("+1212555{n:04}\n")).collect();
    let sent = request(
        &a,
        "POST",
        "/api/v1/companies/3/contacts/imports",
        "content-type: text/csv\r\n",
        format!("phone\n{rows}"),
    );
    let sent = sent.await;
    assert_eq!(sent.status, 202, "{}", sent.text);
    let frame =
        watching.first("the import has ended", |frame| frame["now"]["imports"][0]["state"] == "done").await;
    let import = &frame["now"]["imports"][0];
    assert_eq!(
        (&import["company"], &import["rows"], &import["id"]),
        (&json!(3), &json!(50), &sent.body["id"])
    );
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let past = "update imports set finished_at = finished_at - interval '2 min'";
    sqlx::raw_sql(AssertSqlSafe(past)).execute(&mut connection).await.unwrap();
    watching.first("it is not shown any more", |frame| frame["now"]["imports"] == json!([])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_limits_refuse_is_shown_of_the_instance_that_did_on_every_other() {
    let database = seeded();
    let key = format!("authorization: Bearer {}\r\n", key_of(&database, 2));
    let a = Served::start_with(&database, "a", &["--admin-key", ADMIN_KEY, "--rate-limit", "5"]);
    let b = Served::start_closed(&database, "b");
    let mut watching = Watching::begin(&b, &admin()).await;
    watching.next("history").await;
    let frame = watching.first("both are there", |frame| instance(frame, "a").is_some()).await;
    assert_eq!(instance(&frame, "a").unwrap()["refused"], json!({}));
    let mut refused = 0;
    for _ in 0..60 {
        refused += u64::from(request(&a, "GET", "/api/v1/companies/2", &key, "").await.status == 429);
    }
    assert!(refused >= 20, "{refused}");
    let frame = watching
        .first("it is shown", |frame| {
            let shown = instance(frame, "a").unwrap();
            shown["refused"]["too-many-requests"] == refused && shown["refusals"].as_f64() > Some(0.0)
        })
        .await;
    assert_eq!(instance(&frame, "a").unwrap()["refused"].as_object().unwrap().len(), 1, "{frame}");
    let other = instance(&frame, "b").unwrap();
    assert_eq!((&other["refused"], &other["refusals"]), (&json!({}), &json!(0.0)), "{frame}");
    let rows = request(&b, "GET", "/api/v1/cache/instances", &admin(), "").await;
    assert_eq!(rows.body[1]["refused"], json!({ "too-many-requests": refused }), "{}", rows.text);
    // It never goes away by itself, and is no more than it was.
    let calm = watching.first("it is over", |frame| instance(frame, "a").unwrap()["refusals"] == 0.0).await;
    assert_eq!(instance(&calm, "a").unwrap()["refused"]["too-many-requests"], refused);
}
