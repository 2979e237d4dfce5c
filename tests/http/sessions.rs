//! A session that carries the token of its last write, and reads of the latest.

use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::resources::CHAT;
use crate::service::{request, two_instances};

/// `PERTO_ROUNDS=1000` for more.
fn rounds() -> usize {
    std::env::var("PERTO_ROUNDS").map_or(100, |rounds| rounds.parse().unwrap())
}

/// Who posts to a chat, and reads who it is with on another instance by each post's token.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_posts_reads_company_user_and_contact_from_l1_by_its_token() {
    let (_database, a, b) = two_instances();
    let messages = format!("/api/v1/chats/{CHAT}/messages");
    let others = ["/api/v1/companies/1", "/api/v1/users/1", "/api/v1/companies/1/contacts/20"];
    for path in others {
        assert_eq!(request(&b, "GET", path, "", "").await.status, 200, "{path}");
    }
    let (mut from_l1, mut reads) = (0, 0);
    for round in 0..rounds() {
        let message = json!({ "sender": "contact", "body": format!("round {round}") });
        let made = request(&a, "POST", &messages, "", message.to_string()).await;
        assert_eq!(made.status, 201, "{}", made.text);
        let seen = request(&b, "GET", &format!("{messages}?limit=1"), &made.at_least(), "").await;
        assert_eq!(seen.body["messages"][0], made.body, "never older than the token");
        for path in others {
            let read = request(&b, "GET", path, &made.at_least(), "").await;
            assert_eq!((read.status, read.header("perto-freshness")), (200, Some("fresh")), "{path}");
            reads += 1;
            from_l1 += usize::from(read.header("perto-tier") == Some("l1"));
        }
    }
    assert!(from_l1 * 100 >= reads * 99, "{from_l1} of {reads} from L1");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_the_latest_reads_what_was_just_written_by_hand() {
    let (database, a, b) = two_instances();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    for round in 0..20 {
        for instance in [&a, &b] {
            request(instance, "GET", "/api/v1/companies/1", "", "").await;
        }
        let name = format!("by hand {round}");
        sqlx::query("update companies set name = $1 where id = 1")
            .bind(&name)
            .execute(&mut connection)
            .await
            .unwrap();
        for instance in [&a, &b] {
            let read = request(instance, "GET", "/api/v1/companies/1", "perto-within: 0\r\n", "").await;
            assert_eq!((&read.body["name"], read.header("perto-freshness")), (&json!(name), Some("fresh")));
        }
    }
}
