//! Who is there: instances that end, are killed, share a name, or can't be asked.

use super::*;

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
async fn with_postgres_down_an_instance_speaks_for_itself_and_says_so() {
    let mut server = PrivatePostgres::start().await;
    let url = server.url("service");
    succeed(perto(&url, "").arg("migrate"));
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
