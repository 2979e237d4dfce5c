//! A session that carries the last token that it got, of a write or of a read, and reads of the latest.

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::resources::CHAT;
use crate::service::{request, two_instances};

/// Rounds after which somebody else writes the company by hand.
const BY_HAND: usize = 100;

/// `PERTO_ROUNDS=50` for less.
fn rounds() -> usize {
    std::env::var("PERTO_ROUNDS").map_or(1_000, |rounds| rounds.parse().unwrap())
}

async fn rename(connection: &mut PgConnection, name: &str) {
    let sql = "update companies set name = $1 where id = 1";
    sqlx::query(sql).bind(name).execute(connection).await.unwrap();
}

/// Who posts to a chat, and reads who it is with, now on this instance and now on that, by the last token alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_never_older_than_its_last_token_and_reads_company_user_and_contact_from_l1() {
    let (database, a, b) = two_instances();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let mut turns = [&a, &b].into_iter().cycle();
    let mut next = || turns.next().unwrap();
    let messages = format!("/api/v1/chats/{CHAT}/messages");
    let others = ["/api/v1/companies/1", "/api/v1/users/1", "/api/v1/companies/1/contacts/20"];
    rename(&mut connection, "round 0").await;
    for instance in [&a, &b] {
        for path in others {
            assert_eq!(
                request(instance, "GET", path, "perto-read: latest\r\n", "").await.status,
                200,
                "{path}"
            );
        }
    }
    let (mut from_l1, mut reads, mut name) = (0, 0, "round 0".to_owned());
    for round in 0..rounds() {
        let message = json!({ "sender": "contact", "body": format!("round {round}") });
        let made = request(next(), "POST", &messages, "", message.to_string()).await;
        assert_eq!(made.status, 201, "{}", made.text);
        let mut last = made.at_least();
        let seen = request(next(), "GET", &format!("{messages}?limit=1"), &last, "").await;
        assert_eq!(seen.body["messages"][0], made.body, "round {round}");
        last = seen.at_least();
        if round % BY_HAND == BY_HAND - 1 {
            // Nobody is told of it but the one who asks.
            name = format!("round {round}");
            rename(&mut connection, &name).await;
            let asked = format!("perto-read: latest\r\n{last}");
            let latest = request(next(), "GET", others[0], &asked, "").await;
            assert_eq!(latest.body["name"], json!(name));
            last = latest.at_least();
        }
        for path in others {
            let read = request(next(), "GET", path, &last, "").await;
            assert_eq!((read.status, read.header("perto-freshness")), (200, Some("fresh")), "{path}");
            if path == others[0] {
                assert_eq!(read.body["name"], json!(name), "round {round}: older than the token");
            }
            last = read.at_least();
            reads += 1;
            from_l1 += usize::from(read.header("perto-tier") == Some("l1"));
        }
        // With the token of what was read last, the message is there too.
        let seen = request(next(), "GET", &format!("{messages}?limit=1"), &last, "").await;
        assert_eq!(seen.body["messages"][0], made.body, "round {round}, by the token of a read");
        // An odd number of requests a round: each path is asked of both instances.
        next();
    }
    assert!(from_l1 * 100 >= reads * 99, "{from_l1} of {reads} from L1");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_the_latest_reads_what_was_just_written_by_hand() {
    let (database, a, b) = two_instances();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let lists = ["/api/v1/companies/1", "/api/v1/companies/1/overview"];
    for round in 0..20 {
        for instance in [&a, &b] {
            for path in lists {
                request(instance, "GET", path, "", "").await;
            }
        }
        let name = format!("by hand {round}");
        rename(&mut connection, &name).await;
        for instance in [&a, &b] {
            for path in lists {
                let read = request(instance, "GET", path, "perto-read: latest\r\n", "").await;
                assert_eq!(
                    (&read.body["name"], read.header("perto-freshness")),
                    (&json!(name), Some("fresh"))
                );
            }
        }
    }
}

/// Without Redis, so that only the log tells of a write.
#[tokio::test(flavor = "multi_thread")]
async fn the_token_of_what_one_instance_has_read_brings_another_instance_as_far() {
    let database = crate::command::seeded();
    let start = |name: &str| crate::command::Served::start_on(&database.url, "", name, &[]);
    let (a, b) = (start("a"), start("b"));
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    for round in 0..20 {
        let phone = format!("+3519120{round:05}");
        for path in ["/api/v1/companies/1/overview", "/api/v1/companies/1/contacts"] {
            request(&b, "GET", path, "", "").await;
        }
        let sql = "insert into contacts (company_id, phone, name) values (1, $1, 'Aaron')";
        sqlx::query(sql).bind(&phone).execute(&mut connection).await.unwrap();
        let counted = request(&a, "GET", "/api/v1/companies/1/overview", "perto-read: latest\r\n", "").await;
        // What was counted there is listed and counted here.
        let listed =
            request(&b, "GET", "/api/v1/companies/1/contacts?size=100", &counted.at_least(), "").await;
        let is_it = |contact: &Value| contact["phone"] == json!(phone);
        assert!(
            listed.body["contacts"].as_array().unwrap().iter().any(is_it),
            "round {round}: {}",
            listed.text
        );
        let here = request(&b, "GET", "/api/v1/companies/1/overview", &counted.at_least(), "").await;
        assert_eq!(here.body, counted.body, "round {round}");
    }
}
