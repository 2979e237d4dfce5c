//! Redis down, Postgres down: what every route does then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use perto::proxy::{Fault, FaultProxy};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::command::{Database, Served, seeded};
use crate::resources::CHAT;
use crate::service::{Response, request};
use crate::support::engines::{moved_to, place_of, redis_url};
use crate::support::silencer::Silencer;
use crate::support::wait::eventually;

/// What is read and what is written, of each resource.
fn routes() -> (Vec<String>, Vec<(&'static str, String, Value)>) {
    let reads = vec![
        format!("/api/v1/chats/{CHAT}/messages"),
        "/api/v1/companies/1".to_owned(),
        "/api/v1/users/1".to_owned(),
        "/api/v1/companies/1/contacts/20".to_owned(),
        "/api/v1/companies/1/contacts/by-phone/910000020".to_owned(),
        format!("/api/v1/chats/{CHAT}/tool-results/weather"),
    ];
    let writes = vec![
        ("POST", format!("/api/v1/chats/{CHAT}/messages"), json!({ "sender": "user", "body": "hello" })),
        ("PATCH", "/api/v1/companies/1".to_owned(), json!({ "name": "Other" })),
        ("PATCH", "/api/v1/users/1".to_owned(), json!({ "name": "Other" })),
        ("PATCH", "/api/v1/companies/1/contacts/20".to_owned(), json!({ "name": "Other" })),
        ("PUT", format!("/api/v1/chats/{CHAT}/tool-results/weather"), json!({ "t": 2 })),
    ];
    (reads, writes)
}

async fn send(served: &Served, (method, path, body): &(&'static str, String, Value)) -> Response {
    request(served, method, path, "", body.to_string()).await
}

async fn get(served: &Served, path: &str) -> Response {
    request(served, "GET", path, "", "").await
}

async fn state(served: &Served) -> String {
    get(served, "/readyz").await.text.trim().to_owned()
}

struct World {
    _database: Database,
    postgres: FaultProxy,
    redis: FaultProxy,
    a: Served,
    b: Served,
}

async fn world() -> World {
    world_with(&[]).await
}

async fn world_with(settings: &[&str]) -> World {
    let database = seeded();
    let (postgres, redis) = (
        FaultProxy::start(place_of(&database.url)).await.unwrap(),
        FaultProxy::start(place_of(&redis_url())).await.unwrap(),
    );
    let through = moved_to(&database.url, &postgres.address().to_string());
    let redis_through = moved_to(&redis_url(), &redis.address().to_string());
    let brief = ["--pool-acquire", "1s"];
    let a = Served::start_on(&through, &redis_through, "a", &[&brief, settings].concat());
    let b = Served::start_on(&database.url, &redis_through, "b", &brief);
    for served in [&a, &b] {
        eventually("it is coherent", async || state(served).await == "coherent").await;
    }
    send(&a, &routes().1[4]).await;
    World { _database: database, postgres, redis, a, b }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_redis_down_every_route_goes_on_and_writes_are_seen_on_the_other_instance() {
    let World { _database, redis, a, b, postgres: _postgres } = world().await;
    let (reads, writes) = routes();
    redis.set(Fault::Cut);
    for served in [&a, &b] {
        eventually("it is isolated", async || state(served).await == "isolated").await;
    }
    for path in &reads {
        for served in [&a, &b] {
            let read = get(served, path).await;
            assert_eq!(
                (read.status, read.header("perto-freshness")),
                (200, Some("fresh")),
                "{path}: {}",
                read.text
            );
        }
        eventually("L1 answers", async || get(&a, path).await.header("perto-tier") == Some("l1")).await;
    }
    for write in &writes {
        let written = send(&a, write).await;
        assert!(matches!(written.status, 200 | 201), "{}: {}", write.1, written.text);
        let read = if write.0 == "POST" { format!("{}?limit=1", write.1) } else { write.1.clone() };
        let read = request(&b, "GET", &read, &written.at_least(), "").await;
        let shown = if write.0 == "POST" { &read.body["messages"][0] } else { &read.body };
        assert_eq!(shown, &written.body, "{}", write.1);
    }
    redis.set(Fault::None);
    for served in [&a, &b] {
        eventually("it is coherent again", async || state(served).await == "coherent").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_down_what_is_cached_is_served_and_flagged_and_the_rest_is_a_503() {
    let World { _database, postgres, a, b: _b, redis: _redis } = world().await;
    let (reads, writes) = routes();
    for path in &reads {
        get(&a, path).await;
    }
    postgres.set(Fault::Cut);
    eventually("it is unverified", async || state(&a).await == "unverified").await;
    assert_eq!(get(&a, "/readyz").await.status, 200, "there is something to serve");
    for path in &reads {
        let read = get(&a, path).await;
        assert_eq!(
            (read.status, read.header("perto-freshness")),
            (200, Some("unverified")),
            "{path}: {}",
            read.text
        );
    }
    let unknown = get(&a, "/api/v1/companies/17").await;
    assert_eq!((unknown.status, unknown.header("retry-after")), (503, Some("1")), "{}", unknown.text);
    for write in &writes {
        let refused = send(&a, write).await;
        assert_eq!(refused.status, 503, "{}: {}", write.1, refused.text);
        assert_eq!(refused.header("retry-after"), Some("1"));
        assert!(!refused.text.contains("127.0.0.1"), "{}", refused.text);
    }
    assert_eq!(get(&a, "/livez").await.status, 200);
    postgres.set(Fault::None);
    eventually("it is coherent again", async || state(&a).await == "coherent").await;
    for path in &reads {
        let read = get(&a, path).await;
        assert_eq!((read.status, read.header("perto-freshness")), (200, Some("fresh")), "{path}");
    }
    assert!(matches!(send(&a, &writes[0]).await.status, 201));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_database_costs_a_request_its_limit_and_no_more() {
    let World { _database, postgres, a, b: _b, redis: _redis } = world().await;
    postgres.set(Fault::BlackHole);
    let began = std::time::Instant::now();
    let (read, write) =
        tokio::join!(get(&a, "/api/v1/companies/16"), async { send(&a, &routes().1[1]).await });
    assert!(matches!(read.status, 503 | 504), "{}", read.text);
    assert!(matches!(write.status, 503 | 504), "{}", write.text);
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_fall_silent_lose_their_places_in_no_pool() {
    let database = seeded();
    let silencer = Silencer::start(place_of(&database.url)).await;
    let through = moved_to(&database.url, &silencer.address);
    // Of so small a window, what is older is asked of Postgres.
    let small =
        ["--pool-size", "8", "--pool-acquire", "3s", "--request-timeout", "2s", "--message-window", "5"];
    let a = Served::start_on(&through, &redis_url(), "a", &small);
    eventually("it is coherent", async || state(&a).await == "coherent").await;
    // Each is a load: nobody has asked for it before.
    let next = AtomicU64::new(1_000);
    let unknown = async || {
        let path = format!("/api/v1/companies/{}", next.fetch_add(1, Ordering::Relaxed));
        get(&a, &path).await.status == 404
    };
    let older = format!("/api/v1/chats/{CHAT}/messages?limit=50");
    let past_the_caches = async || get(&a, &older).await.status == 200;
    let write = async || {
        let path = format!("/api/v1/chats/{CHAT}/tool-results/{}", next.fetch_add(1, Ordering::Relaxed));
        matches!(send(&a, &("PUT", path, json!({ "t": 1 }))).await.status, 200 | 201)
    };
    let answered = AtomicU64::new(0);
    let reading = async || {
        loop {
            let (read, listed, written) = tokio::join!(unknown(), past_the_caches(), write());
            answered.fetch_add(u64::from(read && listed && written), Ordering::Relaxed);
        }
    };
    let silences = async {
        for _ in 0..2 {
            let before = answered.load(Ordering::Relaxed);
            eventually("requests go on", async || answered.load(Ordering::Relaxed) > before + 200).await;
            let opened = silencer.opened();
            silencer.silence();
            eventually("there are new connections", async || silencer.opened() > opened + 3).await;
        }
    };
    tokio::select! {
        never = futures_util::future::join_all((0..12).map(|_| reading())) => panic!("{never:?}"),
        () = silences => {}
    }
    let all = async || {
        let many = futures_util::future::join_all((0..16).map(async |_| {
            let (read, listed, written) = tokio::join!(unknown(), past_the_caches(), write());
            read && listed && written
        }));
        many.await.into_iter().all(|right| right)
    };
    let limit = Duration::from_secs(15);
    crate::support::wait::eventually_within(limit, "all requests are answered", all).await;
    for _ in 0..5 {
        assert!(all().await, "places are taken by connections that say nothing");
    }
}

/// As in a failover that happens just then.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_first_poll_fails_starts_all_the_same() {
    let database = seeded();
    let mut other = PgConnection::connect(&database.url).await.unwrap();
    let lock = "begin; lock table perto.invalidation in access exclusive mode";
    sqlx::raw_sql(lock).execute(&mut other).await.unwrap();
    let url = database.url.clone();
    let starting = tokio::task::spawn_blocking(move || Served::start_on(&url, &redis_url(), "a", &[]));
    let mut looking = PgConnection::connect(&database.url).await.unwrap();
    let end = "select coalesce(bool_or(pg_terminate_backend(pid)), false) from pg_stat_activity where datname = current_database() \
         and application_name like 'perto/%' and wait_event_type = 'Lock'";
    for _ in 0..1_000 {
        if sqlx::query_scalar(end).fetch_one(&mut looking).await.unwrap() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    let served = starting.await.unwrap();
    eventually("it is coherent", async || state(&served).await == "coherent").await;
}

/// Postgres answers nobody on one instance; a write on the other is told of by its hint.
#[tokio::test(flavor = "multi_thread")]
async fn where_stale_answers_are_allowed_an_invalidated_value_is_served_and_says_for_how_long_it_is_old() {
    let World { _database, postgres, a, b, redis: _redis } = world_with(&["--stale", "60s"]).await;
    let path = "/api/v1/companies/1";
    let before = get(&a, path).await;
    assert_eq!(before.header("cache-status"), Some("perto; fwd=uri-miss"), "{}", before.text);
    eventually("L1 answers", async || {
        get(&a, path).await.header("cache-status") == Some("perto; hit; detail=l1")
    })
    .await;
    postgres.set(Fault::BlackHole);
    let written = request(&b, "PATCH", path, "", r#"{ "name": "Other" }"#).await;
    assert_eq!(written.status, 200, "{}", written.text);
    eventually("the hint has come", async || get(&a, path).await.header("perto-freshness") == Some("stale"))
        .await;
    let read = get(&a, path).await;
    let status = read.header("cache-status").unwrap();
    assert!(status.starts_with("perto; hit; ttl=-") && status.ends_with("; detail=invalidated"), "{status}");
    assert_eq!((read.status, &read.body, read.header("perto-tier")), (200, &before.body, Some("l1")));
    for asked in ["perto-read: fresh\r\n".to_owned(), written.at_least()] {
        let read = request(&a, "GET", path, &asked, "").await;
        assert_eq!(read.status, 503, "{asked}: {}", read.text);
    }
    postgres.set(Fault::None);
    eventually("the load has landed", async || {
        let read = get(&a, path).await;
        read.body == written.body && read.header("perto-freshness") == Some("fresh")
    })
    .await;
}
