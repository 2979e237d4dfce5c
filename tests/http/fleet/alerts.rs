//! Alerts: each is forced, and seen on the other instance.

use super::*;

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
    for _ in 0..7 {
        for _ in 0..100 {
            read_companies(&a, 2..=2).await;
        }
    }
    eventually("few were slow", async || alerts(&b, "responses-slow").await.is_empty()).await;
    eventually("the pool is free again", async || alerts(&b, "postgres-pool-exhausted").await.is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_low_hit_rate_and_a_repair_raise_alerts() {
    let database = seeded();
    let a = Served::start_with(&database, "a", &["--alert-repaired-for", "3s"]);
    let b = Served::start(&database, "b");
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
    for _ in 0..2 {
        for _ in 0..100 {
            read_companies(&a, 2..=2).await;
        }
    }
    eventually("most are hits again", async || alerts(&b, "hit-rate-low").await.is_empty()).await;

    read_companies(&a, 1..=1).await;
    assert!(alerts(&b, "invalidation-repaired").await.is_empty());
    // By hand: no hint comes, so the log has to evict.
    sql(&database.url, "update companies set name = 'by hand' where id = 1").await;
    eventually("a repair is told of", async || !alerts(&b, "invalidation-repaired").await.is_empty()).await;
    let alert = alerts(&b, "invalidation-repaired").await.remove(0);
    assert_eq!((&alert["instance"], &alert["value"]), (&json!("a"), &json!(1.0)), "{alert}");
    eventually("it is a while ago", async || alerts(&b, "invalidation-repaired").await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_nearly_full_raises_an_alert_until_it_has_room() {
    let (database, redis) = (seeded(), PrivateRedis::start().await);
    let a = Served::start_on(&database.url, &redis.url(), "a", &[]);
    let name = "redis-memory-high";
    eventually("it has looked", async || get(&a, METRICS).await["redis"]["up"] == true).await;
    assert!(alerts(&a, name).await.is_empty());
    let used = get(&a, METRICS).await["redis"]["memory"]["usedMemory"].as_u64().unwrap();
    redis.config("maxmemory", &(used * 10 / 9).to_string()).await;
    eventually("it is told of", async || !alerts(&a, name).await.is_empty()).await;
    let alert = alerts(&a, name).await.remove(0);
    assert_eq!((&alert["threshold"], &alert["unit"]), (&json!(80.0), &json!("percent")), "{alert}");
    assert!(alert["value"].as_f64() > Some(80.0), "{alert}");
    redis.config("maxmemory", &(used * 100).to_string()).await;
    eventually("there is room", async || alerts(&a, name).await.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_not_read_for_long_raises_an_alert_before_and_after_the_bound() {
    let database = seeded();
    let postgres = FaultProxy::start(place_of(&database.url)).await.unwrap();
    let through = moved_to(&database.url, &postgres.address().to_string());
    let a = Served::start_on(&through, &redis_url(), "a", &[]);
    let name = "staleness-near-bound";
    eventually("it is coherent", async || instances(&a).await[0]["state"] == "coherent").await;
    assert!(alerts(&a, name).await.is_empty());
    postgres.set(Fault::BlackHole);
    eventually("it is told of", async || {
        alerts(&a, name).await.first().is_some_and(|alert| alert["severity"] == "critical")
    })
    .await;
    let alert = alerts(&a, name).await.remove(0);
    assert_eq!((&alert["value"], &alert["threshold"]), (&json!(100.0), &json!(80.0)), "{alert}");
    eventually("so is its state", async || {
        let raised = alerts(&a, "instance-not-coherent").await;
        raised.first().is_some_and(|alert| alert["severity"] == "critical")
    })
    .await;
    postgres.set(Fault::None);
    eventually("the log is read again", async || alerts(&a, name).await.is_empty()).await;
}
