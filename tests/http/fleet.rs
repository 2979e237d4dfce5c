//! The fleet's figures, alerts and instances.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use perto::proxy::{Fault, FaultProxy};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::command::{ADMIN_KEY, Served, key_of, perto, seeded, succeed};
use crate::service::{request, two_instances};
use crate::support::engines::{moved_to, place_of, redis_url};
use crate::support::pgbouncer::PrivateBouncer;
use crate::support::postgres::PrivatePostgres;
use crate::support::redis::PrivateRedis;
use crate::support::wait::eventually;

const METRICS: &str = "/api/v1/cache/metrics";
const OWN: &str = "/api/v1/cache/metrics?scope=instance";

async fn get(served: &Served, path: &str) -> Value {
    let response = request(served, "GET", path, "", "").await;
    assert_eq!(response.status, 200, "{path}: {}", response.text);
    response.body
}

async fn reset(served: &Served) -> Value {
    let response = request(served, "DELETE", METRICS, "", "").await;
    assert_eq!(response.status, 200, "{}", response.text);
    response.body
}

async fn instances(served: &Served) -> Vec<Value> {
    get(served, "/api/v1/cache/instances").await.as_array().unwrap().clone()
}

async fn names(served: &Served) -> Vec<String> {
    instances(served).await.iter().map(|one| one["instance"].as_str().unwrap().to_owned()).collect()
}

/// Those of one name, by instance.
async fn alerts(served: &Served, name: &str) -> Vec<Value> {
    let said = get(served, "/api/v1/cache/alerts").await;
    let all = said["alerts"].as_array().unwrap();
    all.iter().filter(|alert| alert["name"] == name).cloned().collect()
}

/// Hits, misses, both, and the rate.
fn counted(metrics: &Value, cache: &str) -> (u64, u64, u64, f64) {
    let figures = &metrics["cache"][cache];
    let number = |name: &str| figures[name].as_u64().unwrap_or_else(|| panic!("{name} of {metrics}"));
    (number("hits"), number("misses"), number("totalRequests"), figures["hitRate"].as_f64().unwrap())
}

async fn read_companies(served: &Served, ids: std::ops::RangeInclusive<u32>) {
    for id in ids {
        get(served, &format!("/api/v1/companies/{id}")).await;
    }
}

async fn sql(url: &str, sql: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_two_instances_count_adds_up_exactly_and_splits_by_instance() {
    let (_database, a, b) = two_instances();
    read_companies(&a, 1..=5).await;
    eventually("L2 has them", async || {
        let entry =
            async |id| get(&b, &format!("/api/v1/cache/company/entries/{id}")).await["l2"]["is"] == "value";
        entry(1).await && entry(2).await && entry(3).await && entry(4).await && entry(5).await
    })
    .await;
    for _ in 0..3 {
        read_companies(&a, 1..=5).await;
        read_companies(&b, 1..=5).await;
    }
    let (own_a, own_b) = (get(&a, OWN).await, get(&b, OWN).await);
    assert_eq!(counted(&own_a, "companyCache"), (15, 5, 20, 75.0));
    assert_eq!(counted(&own_b, "companyCache"), (15, 0, 15, 100.0));
    let tiers = |metrics: &Value| {
        ["l1Hits", "l2Hits", "loadHits", "entries"]
            .map(|name| metrics["cache"]["companyCache"][name].as_u64().unwrap())
    };
    assert_eq!((tiers(&own_a), tiers(&own_b)), ([15, 0, 5, 5], [10, 5, 0, 5]));
    assert_eq!(
        (&own_a["scope"], &own_a["instances"], &own_a["complete"]),
        (&json!("instance"), &json!(1), &json!(true))
    );
    for served in [&a, &b] {
        eventually("the other's figures have come", async || {
            let all = get(served, METRICS).await;
            let (hits, misses, total, rate) = counted(&all, "companyCache");
            assert!(total <= 35, "nothing is counted twice: {all}");
            let whole = (hits, misses, total, rate) == (30, 5, 35, 85.71);
            assert!(!whole || (all["instances"] == 2 && all["complete"] == true), "{all}");
            whole
        })
        .await;
        let all = get(served, METRICS).await;
        assert_eq!(tiers(&all), [25, 5, 5, 10]);
        assert_eq!(counted(&all, "overall"), (30, 5, 35, 85.71));
        for none in
            ["messageCache", "userCache", "contactCache", "validationCache", "toolResultCache", "apiKeyCache"]
        {
            assert_eq!(counted(&all, none), (0, 0, 0, 0.0), "{none}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reset_exactly_what_came_after_it_is_counted_on_every_instance() {
    let (_database, a, b) = two_instances();
    eventually("they know each other", async || names(&a).await.len() == 2 && names(&b).await.len() == 2)
        .await;
    let total = async |served: &Served, path| counted(&get(served, path).await, "overall").2;
    for round in 1..=5 {
        read_companies(&a, 1..=7).await;
        read_companies(&b, 1..=9).await;
        // Sometimes the others' figures have been read a moment ago, sometimes not.
        if round % 2 == 0 {
            get(&b, METRICS).await;
        }
        let done = reset(if round % 2 == 0 { &a } else { &b }).await;
        assert_eq!((&done["complete"], &done["behind"]), (&json!(true), &json!([])), "round {round}");
        for served in [&b, &a] {
            let all = get(served, METRICS).await;
            assert_eq!(
                (&all["complete"], &all["instances"]),
                (&json!(true), &json!(2)),
                "round {round}: {all}"
            );
            assert_eq!(counted(&all, "overall").2, 0, "round {round}: {all}");
            assert_eq!(total(served, OWN).await, 0, "round {round}");
        }
        read_companies(&a, 1..=3).await;
        read_companies(&b, 1..=4).await;
        assert_eq!((total(&a, OWN).await, total(&b, OWN).await), (3, 4), "round {round}");
        for served in [&a, &b] {
            eventually("all that came after it", async || {
                let total = total(served, METRICS).await;
                assert!(total <= 7, "round {round}: {total}");
                total == 7
            })
            .await;
        }
    }
    let held = get(&a, OWN).await;
    assert_eq!(held["cache"]["companyCache"]["entries"], 7, "a reset evicts nothing");
    // An instance that comes later counts in the same generation.
    assert_eq!(get(&a, METRICS).await["instances"], 2);
}

/// Reads that run through a reset: what ended before it was asked for is gone, what began after its answer is counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_under_load_takes_off_what_was_before_it_and_nothing_of_what_came_after() {
    let (_database, a, b) = two_instances();
    eventually("they know each other", async || names(&a).await.len() == 2).await;
    let (both, done) = ([&a, &b], AtomicBool::new(false));
    let (begun, ended) = ([const { AtomicU64::new(0) }; 2], [const { AtomicU64::new(0) }; 2]);
    let now = |counts: &[AtomicU64; 2]| counts.each_ref().map(|count| count.load(SeqCst));
    let reading = async |at: usize| {
        while !done.load(SeqCst) {
            begun[at].fetch_add(1, SeqCst);
            read_companies(both[at], 1..=1).await;
            ended[at].fetch_add(1, SeqCst);
        }
    };
    let resetting = async {
        eventually("some reads", async || now(&ended).iter().all(|count| *count > 50)).await;
        let before = now(&ended);
        assert_eq!(reset(&a).await["complete"], true);
        let after = now(&begun);
        eventually("more reads", async || now(&ended).iter().zip(after).all(|(now, then)| *now > then + 50))
            .await;
        done.store(true, SeqCst);
        (before, after)
    };
    let ((before, after), (), ()) = tokio::join!(resetting, reading(0), reading(1));
    let all = now(&ended);
    let mut sum = 0;
    for at in 0..2 {
        let own = counted(&get(both[at], OWN).await, "overall").2;
        let (least, most) = (all[at] - after[at], all[at] - before[at]);
        assert!((least..=most).contains(&own), "{own}, not within {least}..={most}");
        sum += own;
    }
    for served in both {
        eventually("the sum of both", async || counted(&get(served, METRICS).await, "overall").2 == sum)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_have_the_names_that_clients_read() {
    let database = seeded();
    let a = Served::start_on(&database.url, &redis_url(), "a", &["--admin-key", ADMIN_KEY]);
    let key = key_of(&database, 1);
    let (admin, tenant) =
        (format!("authorization: Bearer {ADMIN_KEY}\r\n"), format!("authorization: Bearer {key}\r\n"));
    for id in [20, 40] {
        request(&a, "GET", &format!("/api/v1/companies/1/contacts/{id}"), &tenant, "").await;
    }
    request(&a, "GET", "/api/v1/companies/1/contacts/by-phone/%2B12122000020", &tenant, "").await;
    let read = request(&a, "GET", METRICS, &admin, "").await;
    let all = &read.body;
    let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    for cache in [
        "messageCache",
        "userCache",
        "companyCache",
        "contactCache",
        "validationCache",
        "toolResultCache",
        "overall",
        "contactByPhoneCache",
        "apiKeyCache",
    ] {
        let shown = fields(&all["cache"][cache]);
        for name in [
            "hits",
            "misses",
            "hitRate",
            "totalRequests",
            "l1Hits",
            "l2Hits",
            "loads",
            "loadErrors",
            "unverified",
            "l2Refused",
            "insertsRefused",
            "entries",
            "bytes",
        ] {
            assert!(shown.contains(name), "{name} of {cache}: {all}");
        }
    }
    assert_eq!(fields(&all["cache"]).len(), 9, "{all}");
    assert_eq!(counted(all, "contactByPhoneCache").2, 1);
    assert_eq!(counted(all, "contactCache").2, 3, "by id and by phone together");
    assert_eq!(counted(all, "apiKeyCache").2, 3, "each request looked its key up");
    assert_eq!(counted(all, "overall").2, 3 + counted(all, "companyCache").2, "without keys: {all}");
    let redis = &all["redis"];
    assert_eq!((&redis["up"], &redis["configured"]), (&json!(true), &json!(true)));
    assert!(redis["memory"]["usedMemoryHuman"].as_str().unwrap().ends_with(['B', 'K', 'M', 'G']), "{redis}");
    assert!(redis["memory"]["memoryUsagePercent"].is_f64() && redis["stats"]["hitRate"].is_f64(), "{redis}");
    assert!(redis["stats"]["connectedClients"].as_u64().unwrap() >= 2, "{redis}");

    for (query, says) in
        [("scope=all", "scope"), ("scop=fleet", "scop"), ("scope=fleet&scope=fleet", "scope")]
    {
        let refused = request(&a, "GET", &format!("{METRICS}?{query}"), &admin, "").await;
        assert_eq!(
            (refused.status, &refused.body["field"]),
            (400, &json!(says)),
            "{query}: {}",
            refused.text
        );
    }
    for (method, path) in [
        ("GET", METRICS),
        ("DELETE", METRICS),
        ("GET", "/api/v1/cache/alerts"),
        ("GET", "/api/v1/cache/instances"),
    ] {
        assert_eq!(request(&a, method, path, &tenant, "").await.status, 403, "{method} {path}");
        assert_eq!(request(&a, method, path, "", "").await.status, 401, "{method} {path}");
        assert_eq!(request(&a, method, path, &admin, "").await.status, 200, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_tells_of_itself_and_of_the_others() {
    let (database, a, b) = two_instances();
    eventually("they know each other", async || names(&a).await.len() == 2 && names(&b).await.len() == 2)
        .await;
    assert_eq!(
        (names(&a).await, names(&b).await),
        (["a", "b"].map(str::to_owned).into(), ["b", "a"].map(str::to_owned).into())
    );
    read_companies(&b, 1..=2).await;
    eventually("what one counts is shown by the other", async || {
        let shown = instances(&a).await.remove(1);
        shown["caches"]["company"]["entries"] == 2 && shown["caches"]["company"]["loads"].as_u64() >= Some(2)
    })
    .await;
    for (shown, served) in instances(&a).await.iter().zip([&a, &b]) {
        assert_eq!((&shown["address"], &shown["alone"]), (&json!(served.address), &json!(false)), "{shown}");
        assert_eq!(shown["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(
            (&shown["pool"]["requests"]["max"], &shown["pool"]["loads"]["max"]),
            (&json!(10), &json!(8))
        );
        assert!(shown["requests"]["count"].as_u64() > Some(0), "{shown}");
        assert!(shown["requests"]["lastMinute"]["p99Ms"].as_f64() > Some(0.0), "{shown}");
        assert!(shown["startedAt"].as_str() <= shown["seenAt"].as_str(), "{shown}");
        assert!(
            shown["leaseLeftMs"].as_u64() <= Some(1_000) && shown["propagation"]["p50Ms"].is_f64(),
            "{shown}"
        );
    }
    // Who ends in order is gone at once.
    assert!(tokio::task::spawn_blocking(move || b.end()).await.unwrap());
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let left: Vec<String> =
        sqlx::query_scalar("select name from instances").fetch_all(&mut connection).await.unwrap();
    assert_eq!(left, ["a"]);
    eventually("it is shown no more", async || names(&a).await == ["a"]).await;
    assert_eq!(get(&a, METRICS).await["complete"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_instance_goes_silent_and_is_then_forgotten() {
    let (database, a, b) = two_instances();
    read_companies(&b, 1..=6).await;
    eventually("its figures have come", async || counted(&get(&a, METRICS).await, "companyCache").2 == 6)
        .await;
    drop(b);
    eventually("it is silent", async || instances(&a).await.iter().any(|one| one["state"] == "silent")).await;
    let all = get(&a, METRICS).await;
    assert_eq!(
        (&all["complete"], counted(&all, "companyCache").2),
        (&json!(false), 6),
        "what it had counted stays"
    );
    let alert = alerts(&a, "instance-silent").await.remove(0);
    assert_eq!((&alert["instance"], &alert["severity"]), (&json!("b"), &json!("critical")), "{alert}");
    let done = reset(&a).await;
    assert_eq!((&done["complete"], &done["behind"]), (&json!(false), &json!(["b"])));
    assert_eq!(counted(&get(&a, METRICS).await, "companyCache").2, 0);
    // As if most of the minute were over.
    sql(&database.url, "update instances set seen_at = now() - interval '59 s' where name = 'b'").await;
    eventually("it is forgotten", async || names(&a).await == ["a"]).await;
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    eventually("its row is gone", async || {
        let count =
            sqlx::query_scalar::<_, i64>("select count(*) from instances").fetch_one(&mut connection).await;
        count.unwrap() == 1
    })
    .await;
    assert!(alerts(&a, "instance-silent").await.is_empty());
    assert_eq!(reset(&a).await["complete"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_of_one_name_are_told_apart_and_both_counted() {
    let database = seeded();
    let (a, same) = (Served::start(&database, "a"), Served::start(&database, "a"));
    read_companies(&a, 1..=2).await;
    read_companies(&same, 1..=3).await;
    eventually("both are counted", async || counted(&get(&a, METRICS).await, "companyCache").2 == 5).await;
    let shown = instances(&a).await;
    assert_eq!((&shown[0]["instance"], &shown[1]["instance"], shown.len()), (&json!("a"), &json!("a"), 2));
    assert_ne!(shown[0]["id"], shown[1]["id"]);
    assert_eq!(shown[1]["address"], same.address);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_read_is_no_trouble_and_not_complete() {
    let (database, a, _b) = two_instances();
    eventually("they know each other", async || names(&a).await.len() == 2).await;
    let row = |name: &str, figures: &str| {
        format!(
            "insert into instances values (gen_random_uuid(), '{name}', now(), now() + interval '1 minute', 0, '{figures}')"
        )
    };
    for (name, figures) in [("x", "null"), ("y", r#"{"instance": {"polls": -1}, "alerts": 7}"#)] {
        sql(&database.url, &row(name, figures)).await;
    }
    eventually("there is somebody who can't be counted", async || {
        get(&a, METRICS).await["complete"] == false
    })
    .await;
    assert_eq!(get(&a, METRICS).await["instances"], 2);
    assert_eq!(names(&a).await, ["a", "b"]);
    assert_eq!(get(&a, "/api/v1/cache/alerts").await["complete"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_redis_down_figures_say_so_and_both_instances_raise_an_alert_until_it_is_back() {
    let database = seeded();
    let mut redis = PrivateRedis::start().await;
    let (a, b) = (
        Served::start_on(&database.url, &redis.url(), "a", &[]),
        Served::start_on(&database.url, &redis.url(), "b", &[]),
    );
    eventually("all is well", async || {
        get(&a, METRICS).await["redis"]["up"] == true && alerts(&a, "instance-not-coherent").await.is_empty()
    })
    .await;
    redis.kill();
    eventually("Redis is down", async || get(&a, METRICS).await["redis"]["up"] == false).await;
    let down = &get(&a, METRICS).await["redis"];
    assert_eq!(
        (&down["configured"], &down["memory"]["usedMemoryHuman"], &down["stats"]["hitRate"]),
        (&json!(true), &Value::Null, &Value::Null)
    );
    eventually("both raise it", async || {
        let raised = alerts(&b, "instance-not-coherent").await;
        let by: BTreeSet<_> = raised.iter().map(|alert| alert["instance"].as_str().unwrap()).collect();
        by == BTreeSet::from(["a", "b"])
    })
    .await;
    let raised = alerts(&a, "instance-not-coherent").await.remove(0);
    assert_eq!((&raised["severity"], &raised["unit"]), (&json!("warning"), &json!("seconds")), "{raised}");
    assert!(
        raised["detail"].as_str().unwrap().contains("isolated") && raised["since"].is_string(),
        "{raised}"
    );
    let since = raised["since"].clone();
    eventually("it keeps its beginning", async || {
        let now = alerts(&a, "instance-not-coherent").await.remove(0);
        assert_eq!(now["since"], since);
        now["value"].as_f64() > raised["value"].as_f64()
    })
    .await;
    redis.restart_empty().await;
    eventually("all is well again", async || {
        alerts(&a, "instance-not-coherent").await.is_empty() && get(&a, METRICS).await["redis"]["up"] == true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_being_alone_with_postgres_is_as_it_should_be() {
    let database = seeded();
    let a = Served::start_on(&database.url, "", "a", &[]);
    eventually("it has looked twice", async || instances(&a).await[0]["polls"].as_u64() > Some(30)).await;
    let shown = get(&a, METRICS).await;
    assert_eq!((&shown["redis"]["configured"], &shown["redis"]["up"]), (&json!(false), &json!(false)));
    assert_eq!(instances(&a).await[0]["state"], "isolated");
    assert!(alerts(&a, "instance-not-coherent").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_down_an_instance_speaks_for_itself_and_says_so() {
    let mut server = PrivatePostgres::start().await;
    let url = server.url("service");
    succeed(perto(&url, "").args(["migrate", "--service"]));
    let start = |name: &str| Served::start_on(&url, &redis_url(), name, &["--pool-acquire", "1s"]);
    let (a, b) = (start("a"), start("b"));
    eventually("they know each other", async || names(&a).await.len() == 2).await;
    server.kill();
    eventually("it knows of no other", async || names(&a).await == ["a"]).await;
    assert_eq!(instances(&a).await[0]["alone"], true);
    let shown = get(&a, METRICS).await;
    assert_eq!(
        (&shown["complete"], &shown["instances"], &shown["redis"]["up"]),
        (&json!(false), &json!(1), &json!(true))
    );
    assert_eq!(get(&a, OWN).await["complete"], true);
    let refused = request(&a, "DELETE", METRICS, "", "").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{}", refused.text);
    eventually("it raises an alert", async || !alerts(&a, "staleness-near-bound").await.is_empty()).await;
    eventually("and another", async || !alerts(&b, "instance-not-coherent").await.is_empty()).await;
    let alert = alerts(&a, "staleness-near-bound").await.remove(0);
    assert_eq!((&alert["severity"], &alert["value"]), (&json!("critical"), &json!(100.0)), "{alert}");
    assert_eq!(get(&a, "/api/v1/cache/alerts").await["complete"], false);
    // Its rows are lost by the crash: they come again.
    server.restart().await;
    eventually("they know each other again", async || {
        let (shown, all) = (instances(&a).await, get(&a, METRICS).await);
        shown.len() == 2 && shown[0]["alone"] == false && all["instances"] == 2 && all["complete"] == true
    })
    .await;
    eventually("all is well again", async || alerts(&b, "instance-not-coherent").await.is_empty()).await;
    assert_eq!(reset(&b).await["complete"], true);
}

/// It accepts and says nothing: statements never end.
#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_that_hangs_costs_these_routes_their_limit_and_is_found_again() {
    let database = seeded();
    let proxy = FaultProxy::start(place_of(&database.url)).await.unwrap();
    let through = moved_to(&database.url, &proxy.address().to_string());
    let a = Served::start_on(&through, &redis_url(), "a", &[]);
    let b = Served::start(&database, "b");
    eventually("they know each other", async || names(&a).await.len() == 2 && names(&b).await.len() == 2)
        .await;
    proxy.set(Fault::BlackHole);
    eventually("the other has not heard of it for a while", async || {
        // Each takes a connection that is never answered.
        let began = Instant::now();
        get(&a, METRICS).await;
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
        instances(&b).await[1]["state"] == "silent"
    })
    .await;
    let refused = request(&a, "DELETE", METRICS, "", "").await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert_eq!((instances(&a).await[0]["alone"].clone(), names(&a).await.len()), (json!(true), 1));
    assert_eq!(reset(&b).await["behind"], json!(["a"]));
    proxy.set(Fault::None);
    eventually("all are counted again", async || {
        get(&a, METRICS).await["complete"] == true && get(&b, METRICS).await["complete"] == true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_pool_and_slow_responses_raise_alerts_while_the_heartbeat_goes_on() {
    let database = seeded();
    let small = ["--pool-size", "8", "--alert-response-time", "500ms"];
    let a = Served::start_on(&database.url, &redis_url(), "a", &small);
    let b = Served::start(&database, "b");
    eventually("they know each other", async || names(&b).await.len() == 2).await;
    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let mut held = holder.begin().await.unwrap();
    sqlx::query("update companies set name = 'held' where id = 1").execute(&mut *held).await.unwrap();
    let rename = json!({ "name": "other" }).to_string();
    let writes = futures_util::future::join_all(
        (0..6).map(|_| request(&a, "PATCH", "/api/v1/companies/1", "", &rename)),
    );
    let seeing = async {
        eventually("the other tells of it", async || !alerts(&b, "postgres-pool-exhausted").await.is_empty())
            .await;
        let alert = alerts(&b, "postgres-pool-exhausted").await.remove(0);
        assert_eq!((&alert["instance"], &alert["severity"]), (&json!("a"), &json!("critical")), "{alert}");
        assert!(alert["detail"].as_str().unwrap().contains("requests"), "{alert}");
        let shown = instances(&b).await.into_iter().find(|one| one["instance"] == "a").unwrap();
        let pool = &shown["pool"]["requests"];
        assert_eq!(
            (&shown["state"], &pool["max"], &pool["inUse"]),
            (&json!("coherent"), &json!(3), &json!(3)),
            "{shown}"
        );
        assert!(pool["exhausted"].as_u64() > Some(0), "{shown}");
        held.rollback().await.unwrap();
    };
    let (answers, ()) = tokio::join!(writes, seeing);
    assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 503)));
    eventually("slow responses are told of", async || !alerts(&b, "responses-slow").await.is_empty()).await;
    let alert = alerts(&b, "responses-slow").await.remove(0);
    assert_eq!(
        (&alert["instance"], &alert["threshold"], &alert["unit"]),
        (&json!("a"), &json!(0.5), &json!("seconds"))
    );
    assert!(alert["value"].as_f64() > Some(0.5), "{alert}");
    eventually("the pool is free again", async || alerts(&b, "postgres-pool-exhausted").await.is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_low_hit_rate_and_a_repair_raise_alerts() {
    let (database, a, b) = two_instances();
    eventually("they know each other", async || names(&b).await.len() == 2).await;
    assert!(alerts(&a, "hit-rate-low").await.is_empty());
    for id in 1_000..1_110 {
        assert_eq!(request(&a, "GET", &format!("/api/v1/companies/{id}"), "", "").await.status, 404);
    }
    eventually("a low hit rate is told of", async || !alerts(&b, "hit-rate-low").await.is_empty()).await;
    let alert = alerts(&b, "hit-rate-low").await.remove(0);
    assert_eq!(
        (&alert["instance"], &alert["value"], &alert["threshold"]),
        (&json!("a"), &json!(0.0), &json!(60.0)),
        "{alert}"
    );

    read_companies(&a, 1..=1).await;
    assert!(alerts(&b, "invalidation-repaired").await.is_empty());
    // By hand: no hint comes, so the log has to evict.
    sql(&database.url, "update companies set name = 'by hand' where id = 1").await;
    eventually("a repair is told of", async || !alerts(&b, "invalidation-repaired").await.is_empty()).await;
    let alert = alerts(&b, "invalidation-repaired").await.remove(0);
    assert_eq!((&alert["instance"], &alert["value"]), (&json!("a"), &json!(1.0)), "{alert}");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_transaction_pooler_the_fleet_is_counted_and_reset() {
    let server = PrivatePostgres::start().await;
    succeed(perto(&server.url("service"), "").args(["migrate", "--service"]));
    let bouncer = PrivateBouncer::start(server.port, 4).await;
    let start = |name: &str| {
        Served::start_on(&bouncer.url("service"), &redis_url(), name, &["--prepared-statements", "false"])
    };
    let (a, b) = (start("a"), start("b"));
    for id in 1..=5 {
        for served in [&a, &b] {
            assert_eq!(request(served, "GET", &format!("/api/v1/companies/{id}"), "", "").await.status, 404);
        }
    }
    for served in [&a, &b] {
        eventually("both are counted", async || counted(&get(served, METRICS).await, "companyCache").2 == 10)
            .await;
    }
    assert_eq!(reset(&b).await["complete"], true);
    assert_eq!(counted(&get(&a, METRICS).await, "companyCache").2, 0);
    eventually("nobody is silent", async || get(&a, METRICS).await["complete"] == true).await;
}
