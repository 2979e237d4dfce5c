//! `perto switch`: what it says, what it refuses, and that it lasts.

use perto::{Cache, Perto, Switching, Tier, TierMode, postgres};
use serde_json::Value;
use sqlx::PgPool;

use super::first_use::bare;
use super::*;

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tier_is_put_aside_and_back_with_who_why_and_until_when() {
    let (name, url, pool) = bare("switch").await;
    succeed(&url, &["migrate"]);
    succeed(&url, &["watch", "users", "--cache", "user"]);
    assert_eq!(succeed(&url, &["switch"]), "Nothing is switched: all tiers of all caches are on.\n");
    let (instance, users) = running(&url, &pool).await;
    let off = ["switch", "user", "l1", "off", "--reason", "slow since 02:50", "--by", "ana", "--for", "30m"];
    let said = succeed(&url, &off);
    for part in ["l1 of user is off", "next poll", "ends by itself at ", "perto switch user l1 on"] {
        assert!(said.contains(part), "{said}");
    }
    is(&users, TierMode::Off).await;
    let said = succeed(&url, &["switch", "*", "l1", "read-only", "--by", "bo"]);
    assert!(
        said.contains("l1 of all caches is read-only") && said.contains("until somebody ends it"),
        "{said}"
    );
    assert!(said.contains("Besides, l1 of the cache user is off"), "{said}");
    let shown = words(&succeed(&url, &["switch"]));
    assert!(shown.contains("CACHE TIER IS SINCE (UTC) UNTIL (UTC) BY REASON * l1 read-only"), "{shown}");
    assert!(shown.contains("user l1 off") && shown.contains("ana slow since 02:50"), "{shown}");
    let json: Value = serde_json::from_str(&succeed(&url, &["switch", "--json"])).unwrap();
    assert_eq!(json["switches"][1]["by"], "ana");
    assert!(json["switches"][0]["cache"].is_null() && json["switches"][0]["until"].is_null(), "{json}");

    let said = succeed(&url, &["switch", "user", "l1", "on"]);
    assert!(
        said.contains("l1 of user is on again") && said.contains("l1 of all caches is read-only"),
        "{said}"
    );
    is(&users, TierMode::ReadOnly).await;
    assert!(succeed(&url, &["switch", "user", "l1", "on"]).contains("was not switched: nothing to do"));
    succeed(&url, &["switch", "*", "l1", "on"]);
    is(&users, TierMode::On).await;
    instance.shutdown().await;
    pool.close().await;
    drop_database(&name).await;
}

#[tokio::test]
async fn a_slip_of_the_pen_switches_nothing_and_says_what_there_is() {
    let (name, url, pool) = bare("slips").await;
    succeed(&url, &["migrate"]);
    succeed(&url, &["watch", "users", "--cache", "user"]);
    for (arguments, says) in [
        (&["usr", "l1", "off"][..], "nothing is watched for a cache \"usr\"; watched are: user"),
        (&["user", "l3", "off"], "\"l3\" is neither l1 nor l2"),
        (&["user", "load", "off"], "neither l1 nor l2"),
        (&["user", "l1", "aus"], "none of on, read-only and off"),
        (&["user", "l1", "on", "--for", "5m"], "what is on has no end"),
        (&["user", "l1", "off", "--for", "5"], "no time"),
        (&["user", "l1", "off", "--reason", "a\nb"], "one line"),
        (&["user", "l1"], "<MODE>"),
        (&["user"], "<TIER>"),
    ] {
        let said = refused(&url, &[&["switch"], arguments].concat());
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
    assert_eq!(succeed(&url, &["switch"]), "Nothing is switched: all tiers of all caches are on.\n");
    let computed = succeed(&url, &["switch", "rules", "l1", "off", "--unwatched"]);
    assert!(computed.contains("l1 of rules is off"), "{computed}");
    // What is switched may be ended without.
    assert!(succeed(&url, &["switch", "rules", "l1", "on"]).contains("is on again"));
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let long = Switching::of("user", Tier::Local, TierMode::Off).because(&"x".repeat(500));
    assert!(postgres::switch(&mut connection, "perto", &long).await.is_err());
    drop(connection);
    pool.close().await;
    drop_database(&name).await;
}

async fn running(url: &str, pool: &PgPool) -> (Perto, Cache<i64, String>) {
    let perto = Perto::builder("switched").postgres(url).build().unwrap();
    let load = postgres::by_key(pool, "select id, name from users where id = any($1)");
    let users: Cache<i64, String> = perto.cache("user").tables(["users"]).loader(load).unwrap();
    perto.start().await.unwrap();
    (perto, users)
}

async fn is(users: &Cache<i64, String>, mode: TierMode) {
    let began = std::time::Instant::now();
    while users.inspect(&7).await.unwrap().local_mode != mode {
        assert!(began.elapsed().as_secs() < 1, "not {mode} within a second");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
