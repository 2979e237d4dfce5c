//! Traces, as a collector gets them: across instances, with links, and without what is nobody's business.

use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use perto::proxy::{Fault, FaultProxy};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio_util::task::TaskTracker;

use crate::command::{ADMIN_KEY, Served, key_of, perto, seeded};
use crate::resources::CHAT;
use crate::service::request;
use crate::sink::{Sink, hex, names, one};
use crate::support::engines::{moved_to, place_of, redis_url};
use crate::support::wait::eventually;

const COMPANY: &str = "/api/v1/companies/1";

/// The header that makes a request part of this trace.
fn part_of(trace: &str) -> String {
    format!("traceparent: 00-{trace}-00f067aa0ba902b7-01\r\n")
}

/// Into L1 of an instance.
async fn warm(served: &Served, path: &str) {
    eventually("it is in L1", async || {
        request(served, "GET", path, "", "").await.header("perto-tier") == Some("l1")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_and_the_evictions_that_it_causes_elsewhere_are_one_trace() {
    let (database, sink) = (seeded(), Sink::grpc().await);
    let [a, b, c] = ["a", "b", "c"].map(|name| Served::start_traced(&database, name, &sink.address, "grpc"));
    let mut writes = 0;
    let spans = loop {
        for served in [&a, &b, &c] {
            warm(served, COMPANY).await;
        }
        writes += 1;
        let trace = format!("4bf92f3577b34da6a3ce929d0e0e{writes:04}");
        let body = json!({ "name": format!("Other {writes}") }).to_string();
        assert_eq!(request(&a, "PATCH", COMPANY, &part_of(&trace), body).await.status, 200);
        // The request, UPDATE, SELECT pending, COMMIT, announce, PUBLISH, EVALSHA; two evictions.
        let spans = sink.trace(&trace, 9).await;
        // The hint goes out first, and may be back here before the writer has evicted by itself.
        if one(&spans, "a", "announce").number("perto.evicted") != Some(0) {
            break spans;
        }
        assert!(writes < 20, "a writer never evicts by itself");
    };
    let server = one(&spans, "a", "PATCH /api/v1/companies/{id}");
    assert_eq!(hex(&server.span.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(server.span.kind(), SpanKind::Server);
    assert_eq!(server.number("http.response.status_code"), Some(200));
    assert_eq!(server.text("http.route").as_deref(), Some("/api/v1/companies/{id}"));
    for statement in ["UPDATE", "SELECT pending", "COMMIT"] {
        let span = one(&spans, "a", statement);
        assert!(span.is_child_of(server) && span.span.kind() == SpanKind::Client, "{span:?}");
        assert_eq!(span.text("db.system.name").as_deref(), Some("postgresql"));
    }
    let announce = one(&spans, "a", "announce");
    assert!(announce.is_child_of(server), "{announce:?}");
    assert_eq!(announce.number("perto.evicted"), Some(1));
    let tombstone = one(&spans, "a", "EVALSHA");
    assert!(tombstone.is_child_of(announce) && tombstone.span.kind() == SpanKind::Client, "{tombstone:?}");
    let publish = one(&spans, "a", "PUBLISH");
    assert!(publish.is_child_of(announce) && publish.span.kind() == SpanKind::Producer, "{publish:?}");
    let commit = one(&spans, "a", "COMMIT");
    assert!(commit.span.end_time_unix_nano <= publish.span.start_time_unix_nano, "hints follow the commit");
    for instance in ["b", "c"] {
        let evict = one(&spans, instance, "evict");
        assert!(evict.is_child_of(publish) && evict.is_linked_to(publish), "{evict:?}");
        assert_eq!(evict.span.kind(), SpanKind::Consumer);
        // A poll may have been faster.
        let of_it = spans.iter().filter(|seen| seen.instance == instance);
        let went: i64 = of_it.filter_map(|seen| seen.number("perto.evicted")).sum();
        assert_eq!(went, 1, "it held the company");
    }
    let repairs = spans.iter().filter(|seen| seen.span.name == "repair").count();
    assert_eq!(spans.len() - repairs, 9, "{:?}", names(&spans));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_shows_the_tiers_that_it_went_through() {
    let (database, sink) = (seeded(), Sink::grpc().await);
    let [a, b] = ["a", "b"].map(|name| Served::start_traced(&database, name, &sink.address, "grpc"));
    let traces = ["1", "2", "3"].map(|digit| digit.repeat(32));
    let path = "/api/v1/companies/7";
    let read = async |served: &Served, trace: &str| {
        let answer = request(served, "GET", path, &part_of(trace), "").await;
        answer.header("perto-tier").unwrap().to_owned()
    };
    assert_eq!(read(&a, &traces[0]).await, "load");
    eventually("it is in L2", async || read(&b, &traces[1]).await != "load").await;
    assert_eq!(read(&b, &traces[2]).await, "l1");

    let spans = sink.trace(&traces[0], 5).await;
    let server = one(&spans, "a", "GET /api/v1/companies/{id}");
    let lookup = one(&spans, "a", "lookup company");
    assert!(lookup.is_child_of(server));
    assert_eq!(
        (lookup.text("perto.tier").unwrap(), lookup.text("perto.outcome").unwrap()),
        ("load".into(), "found".into())
    );
    let (get, load) = (one(&spans, "a", "GETRANGE"), one(&spans, "a", "load company"));
    assert!(get.is_child_of(lookup) && load.is_child_of(lookup));
    assert_eq!((get.number("perto.found"), get.text("db.system.name").unwrap()), (Some(0), "redis".into()));
    assert!(get.text("server.address").is_some() && get.number("server.port").is_some());
    let select = one(&spans, "a", "SELECT");
    assert!(select.is_child_of(load));
    let text = select.text("db.query.text").unwrap();
    assert!(text.starts_with("select") && text.contains("from companies"), "{text}");
    assert!(!text.contains("perto_"), "as the loader has it: {text}");

    let spans = sink.trace(&traces[2], 1).await;
    let hit = one(&spans, "b", "GET /api/v1/companies/{id}");
    assert_eq!(
        (spans.len(), hit.text("perto.tier").as_deref()),
        (1, Some("l1")),
        "a hit has no span of its own"
    );
    assert_eq!(hit.span.events.len(), 1);
    assert_eq!(hit.span.events[0].name, "perto.hit");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_joins_a_flight_is_linked_to_the_one_that_leads_it() {
    let (database, sink) = (seeded(), Sink::grpc().await);
    let a = Served::start_traced(&database, "a", &sink.address, "grpc");
    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    sqlx::query("lock table companies in access exclusive mode").execute(&mut *held).await.unwrap();
    let (first, second) = ("a".repeat(32), "b".repeat(32));
    let path = "/api/v1/companies/7";
    let joined = async || {
        let text = request(&a, "GET", "/metrics", "", "").await.text;
        let line = "perto_flights_joined_total{perto_cache=\"company\"} ";
        text.lines().find_map(|l| l.strip_prefix(line)?.parse::<u64>().ok()).unwrap_or_default()
    };
    let loading = async || {
        let text = request(&a, "GET", "/metrics", "", "").await.text;
        text.lines().any(|l| l == "perto_loads_total{perto_cache=\"company\"} 1")
    };
    let (before, (one_parent, other_parent)) = (joined().await, (part_of(&first), part_of(&second)));
    let leading = request(&a, "GET", path, &one_parent, "");
    let joining = async {
        eventually("the first one loads", loading).await;
        request(&a, "GET", path, &other_parent, "").await
    };
    let freeing = async {
        eventually("the second one has joined", async || joined().await > before).await;
        held.rollback().await.unwrap();
    };
    let (led, followed, ()) = tokio::join!(leading, joining, freeing);
    assert_eq!((led.status, followed.status), (200, 200));
    let (led, followed) = (sink.trace(&first, 5).await, sink.trace(&second, 2).await);
    let (leader, follower) = (one(&led, "a", "lookup company"), one(&followed, "a", "lookup company"));
    assert!(follower.is_linked_to(leader), "{follower:?}");
    assert!(leader.span.links.is_empty());
    assert_eq!(followed.len(), 2, "it loads nothing itself: {:?}", names(&followed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_is_part_of_the_trace_of_the_write_that_it_repairs() {
    let (database, sink) = (seeded(), Sink::grpc().await);
    let proxy = FaultProxy::start(place_of(&redis_url())).await.unwrap();
    let through = moved_to(&redis_url(), &proxy.address().to_string());
    let a = Served::start_traced(&database, "a", &sink.address, "grpc");
    let b = Served::start_traced_on(&database, &through, "b", &sink.address, "grpc", &[]);
    warm(&b, COMPANY).await;
    // Nothing comes, and nothing breaks: the hint is lost.
    proxy.set(Fault::BlackHole);
    let trace = "c".repeat(32);
    let body = json!({ "name": "Other" }).to_string();
    assert_eq!(request(&a, "PATCH", COMPANY, &part_of(&trace), body).await.status, 200);
    eventually("the repair came", async || sink.spans().iter().any(|seen| seen.span.name == "repair")).await;
    let spans = sink.trace(&trace, 7).await;
    let (repair, written) = (one(&spans, "b", "repair"), one(&spans, "a", "SELECT pending"));
    assert!(repair.is_child_of(written) && repair.is_linked_to(written), "{repair:?}");
    assert_eq!(repair.number("perto.evicted"), Some(1));
    // What nobody traced is told all the same.
    warm(&b, COMPANY).await;
    sqlx::query("update companies set name = 'by hand' where id = 1")
        .execute(&mut PgConnection::connect(&database.url).await.unwrap())
        .await
        .unwrap();
    eventually("a trace of its own", async || {
        let of_b = |seen: &crate::sink::Seen| seen.instance == "b" && seen.span.name == "repair";
        sink.spans().iter().any(|seen| of_b(seen) && hex(&seen.span.trace_id) != trace)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_spans_and_figures_leave_before_the_caches_do() {
    let (database, sink) = (seeded(), Sink::grpc().await);
    let mut command = perto(&database.url, &redis_url());
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", sink.address));
    command.env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc").env("OTEL_BSP_SCHEDULE_DELAY", "60000");
    let a = Served::start_by(command, "a", &[]);
    warm(&a, COMPANY).await;
    assert!(sink.spans().is_empty() && sink.metrics().is_empty(), "nothing was due yet");
    assert!(a.end());
    let metrics = sink.metrics();
    for name in ["perto.lookups", "perto.lease.age", "http.server.request.duration"] {
        assert!(metrics.iter().any(|metric| metric == name), "{name} is not among {metrics:?}");
    }
    assert!(names(&sink.spans()).iter().any(|name| name == "a: lookup company"));
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_secrets_nor_keys_leave_with_spans_or_figures() {
    let (database, sink) = (seeded(), Sink::http().await);
    let key = key_of(&database, 2);
    let a = Served::start_traced_on(
        &database,
        &redis_url(),
        "a",
        &sink.address,
        "http/protobuf",
        &["--admin-key", ADMIN_KEY],
    );
    let phone = "+351910000020";
    let bearer = format!("authorization: Bearer {key}\r\n");
    let admin = format!("authorization: Bearer {ADMIN_KEY}\r\n");
    let body = json!({ "sender": "user", "body": "what nobody else may read" }).to_string();
    let posted = request(&a, "POST", &format!("/api/v1/chats/{CHAT}/messages"), &bearer, body).await;
    assert_eq!(posted.status, 201);
    let paths = [
        format!("/api/v1/chats/{CHAT}/messages?limit=7"),
        format!("/api/v1/companies/1/contacts/by-phone/{phone}"),
        format!("/api/v1/chats/{CHAT}/tool-results/secret-tool"),
        format!("/api/v1/no-such-route/{phone}"),
    ];
    for path in &paths {
        request(&a, "GET", path, &bearer, "").await;
    }
    let entry = format!("/api/v1/cache/contact_by_phone/1:{phone}");
    assert_eq!(request(&a, "DELETE", &entry, &admin, "").await.status, 200);
    eventually("all came", async || {
        let names = names(&sink.spans());
        names.iter().any(|name| name == "a: DELETE /api/v1/cache/{cache}/{key}")
            && sink.metrics().iter().any(|name| name == "perto.lookups")
    })
    .await;
    let scraped = request(&a, "GET", "/metrics", "", "").await.text;
    let everything = sink.everything() + &scraped;
    assert!(everything.contains("by-phone/{phone}"), "routes are told");
    for secret in [&key, ADMIN_KEY, CHAT, "910000020", "secret-tool", "nobody else may read", "no-such-route"]
    {
        assert!(!everything.contains(secret), "{secret} is told");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_down_silent_or_refusing_costs_spans_and_nothing_else() {
    let database = seeded();
    // Takes connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_at = silent.local_addr().unwrap().to_string();
    let mut kept = Vec::new();
    let tasks = TaskTracker::new();
    tasks.spawn(async move {
        while let Ok((stream, _)) = silent.accept().await {
            kept.push(stream);
        }
    });
    let gone = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    // Answers, and takes nothing.
    let refusing = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refusing_at = refusing.local_addr().unwrap().to_string();
    tasks.spawn(async move { axum::serve(refusing, axum::Router::new()).await });
    for (to, protocol) in [
        (&gone, "grpc"),
        (&gone, "http/protobuf"),
        (&silent_at, "grpc"),
        (&silent_at, "http/protobuf"),
        (&refusing_at, "grpc"),
        (&refusing_at, "http/protobuf"),
    ] {
        let a = Served::start_traced(&database, "a", to, protocol);
        warm(&a, COMPANY).await;
        for _ in 0..500 {
            let answer = request(&a, "GET", COMPANY, "", "").await;
            assert_eq!((answer.status, answer.header("perto-tier")), (200, Some("l1")));
        }
        let counted = async |outcome: &str| {
            let text = request(&a, "GET", "/metrics", "", "").await.text;
            let line = format!("perto_telemetry_spans_total{{perto_outcome=\"{outcome}\"}} ");
            text.lines().find_map(|l| l.strip_prefix(&line)?.parse::<u64>().ok()).unwrap()
        };
        assert!(counted("ended").await >= 500);
        assert_eq!(counted("exported").await, 0);
        if *to != silent_at {
            eventually("it is counted", async || counted("failed").await > 0).await;
        }
        let began = Instant::now();
        assert!(a.end(), "it ends well");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_that_a_request_names_is_believed_of_who_has_a_key() {
    let (database, sink) = (seeded(), Sink::grpc().await);
    let key = format!("authorization: Bearer {}\r\n", key_of(&database, 1));
    let mut command = perto(&database.url, &redis_url());
    command
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", sink.address))
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .env("OTEL_BSP_SCHEDULE_DELAY", "100")
        .env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        .env("OTEL_TRACES_SAMPLER_ARG", "0");
    let a = Served::start_by(command, "a", &["--admin-key", ADMIN_KEY]);
    let (strange, known) = ("a".repeat(32), "b".repeat(32));
    let unknown = format!("authorization: Bearer perto_{}\r\n", "0".repeat(64));
    for headers in ["", unknown.as_str()] {
        for _ in 0..20 {
            let headers = format!("{headers}{}", part_of(&strange));
            assert_eq!(request(&a, "GET", COMPANY, &headers, "").await.status, 401);
        }
    }
    assert_eq!(request(&a, "GET", COMPANY, &format!("{key}{}", part_of(&known)), "").await.status, 200);
    sink.trace(&known, 1).await;
    let of_strangers = sink.spans().iter().filter(|seen| hex(&seen.span.trace_id) == strange).count();
    assert_eq!(of_strangers, 0);
    assert!(sink.spans().iter().all(|seen| hex(&seen.span.trace_id) == known), "nothing else is sampled");
}
