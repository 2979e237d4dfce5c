//! TLS to Redis and to Postgres: who is trusted, who is let in, and certificates that are replaced meanwhile.

use std::io::Write as _;
use std::time::Duration;

use perto::State;
use perto::redis::{address, connect};
use sqlx::{Connection as _, PgConnection};

use crate::front::{Authority, Before, EXPIRED, Front, VALID};
use crate::support::cluster::PrivateCluster;
use crate::support::engines::{place_of, redis_url};
use crate::support::redis::PrivateRedis;
use crate::support::sentinels::Watched;
use crate::support::servers::Files;
use crate::support::wait::{PATIENCE, eventually};
use crate::traffic::{Traffic, both_are_used};
use crate::world::{World, coherent};

/// What a connection says, made anew by the same address.
async fn says(url: &str) -> String {
    let limit = Duration::from_secs(20);
    match connect(&address(url).unwrap(), 1 << 10, limit).await {
        Ok(mut connection) => match redis::cmd("PING").query_async::<String>(&mut *connection).await {
            Ok(pong) => pong,
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_is_spoken_to_where_its_certificate_is_of_its_name_valid_and_trusted() {
    let (authority, other) = (Authority::new(), Authority::new());
    let files = Files::of(&authority.pem());
    let shown = authority.certify("localhost", VALID);
    let front = Front::start(place_of(&redis_url()), &shown, None, Before::Nothing).await;
    let url = |host: &str, query: &str| format!("rediss://{host}:{}?{query}", front.port);
    let trusted = format!("ssl_ca_certs={}", files.path("ca.pem"));
    assert_eq!(says(&url("localhost", &trusted)).await, "PONG");
    let named = format!("{trusted}&ssl_host=localhost");
    assert_eq!(says(&url("127.0.0.1", &named)).await, "PONG");
    for (query, said) in [("", "UnknownIssuer"), (&trusted, "not valid for name")] {
        let answer = says(&url("127.0.0.1", query)).await;
        assert!(answer.contains("invalid peer certificate") && answer.contains(said), "{query}: {answer}");
    }
    let plain = says(&format!("redis://localhost:{}", front.port)).await;
    assert_ne!(plain, "PONG");
    for (pair, said) in [
        (authority.certify("localhost", EXPIRED), "xpired"),
        (other.certify("localhost", VALID), "UnknownIssuer"),
    ] {
        front.show(&pair, None);
        let answer = says(&url("localhost", &trusted)).await;
        assert!(answer.contains(said), "{said}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_asks_who_we_are_is_shown_our_certificate() {
    let authority = Authority::new();
    let files = Files::of(&authority.pem());
    files.put_ours(&authority.certify("an instance", VALID));
    let shown = authority.certify("localhost", VALID);
    let front = Front::start(place_of(&redis_url()), &shown, Some(&authority), Before::Nothing).await;
    let trusted = format!("rediss://localhost:{}?ssl_ca_certs={}", front.port, files.path("ca.pem"));
    let (certificate, key) = (files.path("our.pem"), files.path("our.key"));
    assert_eq!(says(&format!("{trusted}&ssl_certfile={certificate}&ssl_keyfile={key}")).await, "PONG");
    let stranger = says(&trusted).await;
    assert_ne!(stranger, "PONG");
}

/// All that an instance has of Redis: look-ups, fills, hints and its subscription.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_goes_on_by_itself_when_certificates_and_who_certifies_them_are_replaced() {
    let world = World::new().await;
    let (authority, next) = (Authority::new(), Authority::new());
    let files = Files::of(&authority.pem());
    files.put_ours(&authority.certify("an instance", VALID));
    let shown = authority.certify("localhost", VALID);
    let front = Front::start(place_of(&world.redis), &shown, Some(&authority), Before::Nothing).await;
    let url = format!("rediss://localhost:{}?{}", front.port, files.parameters());
    let a = world.start_with(|perto| perto.redis(&url), |cache| cache).await;
    let b = world.start().await;
    let usable = async || a.perto.health().remote_up && a.perto.health().bus_up;
    eventually("L2 and the bus are used", usable).await;
    world.put(1, 7).await;
    assert_eq!(a.fresh(1).await, Some(7));
    eventually("the other instance finds it in L2", async || b.fresh(1).await == Some(7)).await;

    front.show(&next.certify("localhost", VALID), Some(&next));
    let mut unread = 100..;
    eventually("nobody is trusted", async || {
        assert_eq!(a.fresh(unread.next().unwrap()).await, None);
        !a.perto.health().remote_up && !a.perto.health().bus_up
    })
    .await;
    world.put(1, 8).await;
    eventually("what is written shows without Redis", async || a.fresh(1).await == Some(8)).await;
    files.put("ca.pem", &next.pem());
    files.put_ours(&next.certify("an instance", VALID));
    eventually("the new files are used", usable).await;
    a.perto.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_is_spoken_to_where_its_certificate_is_of_its_name_valid_and_trusted() {
    let world = World::new().await;
    let (authority, other) = (Authority::new(), Authority::new());
    let files = Files::of(&authority.pem());
    files.put_ours(&authority.certify("an instance", VALID));
    let shown = authority.certify("localhost", VALID);
    let front = Front::start(place_of(&world.database), &shown, Some(&authority), Before::Request).await;
    let (user, path) = world.database.split_once(&place_of(&world.database)).unwrap();
    let url = |host: &str, ca: &str| {
        format!(
            "{user}{host}:{}{path}?sslmode=verify-full&sslrootcert={ca}&sslcert={}&sslkey={}",
            front.port,
            files.path("our.pem"),
            files.path("our.key")
        )
    };
    let looks = async |url: &str| {
        let options = perto::postgres::options(url).unwrap();
        match PgConnection::connect_with(&options).await {
            Ok(mut connection) => {
                let one = sqlx::query_scalar::<_, i32>("select 1").fetch_one(&mut connection).await;
                one.map_or_else(|error| error.to_string(), |one| one.to_string())
            }
            Err(error) => format!("{error:?}"),
        }
    };
    let ca = files.path("ca.pem");
    assert_eq!(looks(&url("localhost", &ca)).await, "1");
    let elsewhere = looks(&url("127.0.0.1", &ca)).await;
    assert!(elsewhere.contains("NotValidForName"), "{elsewhere}");
    files.put("other.pem", &other.pem());
    let stranger = looks(&url("localhost", &files.path("other.pem"))).await;
    assert!(stranger.contains("UnknownIssuer"), "{stranger}");
    front.show(&authority.certify("localhost", EXPIRED), Some(&authority));
    let expired = looks(&url("localhost", &ca)).await;
    assert!(expired.contains("Expired"), "{expired}");

    front.show(&shown, Some(&authority));
    let secure = url("localhost", &ca);
    let a = world.start_with(|perto| perto.postgres(&secure), |cache| cache).await;
    world.put(1, 7).await;
    assert_eq!(a.fresh(1).await, Some(7));
    // The log's connection is made anew by the files that are there then.
    let next = Authority::new();
    front.show(&next.certify("localhost", VALID), Some(&next));
    files.put("ca.pem", &next.pem());
    files.put_ours(&next.certify("an instance", VALID));
    world.put(1, 8).await;
    eventually("the log is read again", async || a.fresh(1).await == Some(8)).await;
    a.becomes(State::Coherent).await;
    a.perto.shutdown().await;
}

/// Each node shows a certificate of one name, and is known by an address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_spoken_to_by_tls_at_each_node_and_where_slots_move_to() {
    let authority = Authority::new();
    let files = Files::of(&authority.pem());
    files.put_ours(&authority.certify("an instance", VALID));
    let shown = authority.certify("localhost", VALID);
    let fronts = parking_lot::Mutex::new(Vec::new());
    let cluster = PrivateCluster::start_behind(async |place| {
        let front = Front::start(place, &shown, Some(&authority), Before::Nothing).await;
        let port = front.port;
        fronts.lock().push(front);
        port
    })
    .await;
    let fronts = fronts.into_inner();
    let place = cluster.url().replace("redis+", "rediss+");
    let url = format!("{place}?{}&ssl_host=localhost", files.parameters());
    let world = World::with_redis(&format!("redis://127.0.0.1:{}", cluster.nodes[0].port())).await;
    let start = async || world.start_with(|perto| perto.redis(&url), |cache| cache).await;
    let (a, b) = (start().await, start().await);
    coherent([&a, &b]).await;
    both_are_used(&world, &a, &b).await;
    let traffic = Traffic::start(&world, [&a, &b]);
    for channel in [true, false] {
        let key = if channel { format!("perto:{}:bus", world.name) } else { "{moves}".to_owned() };
        let from = cluster.owner(0, &key).await.unwrap();
        cluster.move_slot(&key, from, (from + 1) % 3).await;
        both_are_used(&world, &a, &b).await;
    }
    // Certificates are replaced, and connections made anew.
    let next = Authority::new();
    files.put("ca.pem", &next.pem());
    files.put_ours(&next.certify("an instance", VALID));
    fronts.iter().for_each(|front| front.show(&next.certify("localhost", VALID), Some(&next)));
    eventually("they are connected with again", async || {
        a.put(&world, 1, 1).await;
        b.fresh(1).await;
        [&a, &b].iter().all(|instance| instance.perto.health().state == State::Coherent)
    })
    .await;
    both_are_used(&world, &a, &b).await;
    traffic.end().await;

    let unnamed = format!("{place}?{}", files.parameters());
    let c = world.start_with(|perto| perto.redis(&unnamed).remote_timeout(PATIENCE), |cache| cache).await;
    eventually("a certificate of another name is told", async || {
        c.perto.health().troubles.iter().any(|trouble| trouble.detail.contains("not valid for name"))
    })
    .await;
}

/// Sentinels, the server that they name, and the one that they name after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_what_they_watch_are_spoken_to_by_tls() {
    if !PrivateRedis::has_tls() {
        // What comes by pip has none.
        drop(writeln!(std::io::stderr(), "this server has no TLS"));
        return;
    }
    let authority = Authority::new();
    let files = Files::of(&authority.pem());
    files.put_ours(&authority.certify("an instance", VALID));
    files.put_pair("server", &authority.certify("localhost", VALID));
    let watched = Watched::start_secured(&files).await;
    let place = watched.url().replace("redis+", "rediss+");
    let url = format!("{place}?{}&ssl_host=localhost", files.parameters());
    let world = World::with_redis(&watched.servers[0].url()).await;
    let start = async || world.start_with(|perto| perto.redis(&url), |cache| cache).await;
    let (a, b) = (start().await, start().await);
    coherent([&a, &b]).await;
    both_are_used(&world, &a, &b).await;
    let traffic = Traffic::start(&world, [&a, &b]);
    watched.fail_over(1).await;
    eventually("both are at the other one", async || {
        let list: String = redis::cmd("CLIENT")
            .arg("LIST")
            .query_async(&mut watched.servers[1].connect().await)
            .await
            .unwrap();
        list.lines().filter(|line| line.contains(" sub=1 ") && !line.contains("name=sentinel")).count() == 2
    })
    .await;
    both_are_used(&world, &a, &b).await;
    both_are_used(&world, &b, &a).await;
    traffic.end().await;
    // Who is nobody is let in by nobody.
    let stranger = says(&format!("{place}?ssl_ca_certs={}&ssl_host=localhost", files.path("ca.pem"))).await;
    assert_ne!(stranger, "PONG");
}
