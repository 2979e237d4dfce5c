//! The fleet's figures: what two instances count, and what a reset leaves of it.

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

mod alerts;
mod instances;
mod troubles;

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
        "inboxCache",
        "contactPageCache",
        "overviewCache",
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
    assert_eq!(fields(&all["cache"]).len(), 12, "{all}");
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
async fn behind_a_transaction_pooler_the_fleet_is_counted_and_reset() {
    let server = PrivatePostgres::start().await;
    succeed(perto(&server.url("service"), "").arg("migrate"));
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
