//! The log of an instance: what comes by the thousand is a line a second, with how many were left out.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use perto::proxy::{Fault, FaultProxy};
use serde_json::json;

use crate::command::{Served, perto, seeded};
use crate::service::request;
use crate::support::engines::{moved_to, place_of, redis_url};
use crate::support::servers::Folder;
use crate::support::wait::eventually;

/// Lines that say so, and how many they stand for.
fn told(log: &Path, what: &str) -> (u64, u64) {
    let log = std::fs::read_to_string(log).unwrap();
    let mut lines = (0, 0);
    for line in log.lines().filter(|line| line.contains(what)) {
        let left_out: Option<u64> =
            line.split_once(" left_out=").map(|(_, count)| count.trim().parse().unwrap());
        lines = (lines.0 + 1, lines.1 + 1 + left_out.unwrap_or_default());
    }
    lines
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_for_each_request_of_an_outage_is_one_line_a_second_that_counts() {
    let (database, folder) = (seeded(), Folder::new("lines"));
    let log = folder.0.join("log");
    let postgres = FaultProxy::start(place_of(&database.url)).await.unwrap();
    let through = moved_to(&database.url, &postgres.address().to_string());
    let said = std::fs::File::create(&log).unwrap().into();
    let a = Served::start_saying(perto(&through, &redis_url()), "a", &["--pool-acquire", "1s"], said);
    assert_eq!(request(&a, "GET", "/api/v1/companies/1", "", "").await.status, 200);
    postgres.set(Fault::Cut);
    eventually("it is unverified", async || {
        request(&a, "GET", "/readyz", "", "").await.text.trim() == "unverified"
    })
    .await;
    let (began, mut answers) = (Instant::now(), HashSet::new());
    let (mut reads, mut writes, mut invalidations) = (0, 0, 0);
    let name = json!({ "name": "Other" }).to_string();
    let mut last = false;
    loop {
        let others = futures_util::future::join_all((0..20).map(|id| {
            let read = format!("/api/v1/users/{}", 1_000_000 + reads + id);
            let (a, name) = (&a, &name);
            async move {
                let read = request(a, "GET", &read, "", "").await;
                let write = request(a, "PATCH", "/api/v1/companies/1", "", name).await;
                let path = format!("/api/v1/cache/company/{id}");
                [read.status, write.status, request(a, "DELETE", &path, "", "").await.status]
            }
        }));
        let done = others.await;
        answers.extend(done.iter().flatten().copied());
        (reads, writes, invalidations) = (reads + 20, writes + 20, invalidations + 20);
        if last {
            break;
        }
        // The last ones tell of those before.
        last = began.elapsed() > Duration::from_secs(3) && reads >= 60;
        tokio::time::sleep(Duration::from_millis(if last { 1_100 } else { 10 })).await;
    }
    let took = began.elapsed();
    assert_eq!(answers, HashSet::from([503]));
    let all = std::fs::read_to_string(&log).unwrap();
    for (what, failed) in
        [("read failed", reads), ("write failed", writes), ("invalidation failed", invalidations)]
    {
        let (lines, told) = told(&log, what);
        assert!(lines <= took.as_secs() + 2, "{what}: {lines} lines in {took:?}: {all}");
        // Of the last batch all but the first may still be to come.
        assert!(told + 20 >= failed && told <= failed, "{what}: {told} of {failed}: {all}");
        assert!(lines >= 2 && told > lines, "{what}: {lines} lines of {told}");
    }
}
