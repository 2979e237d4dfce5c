//! Values of many rows: inboxes, contacts by name in pages, and overviews, against what plain SQL says of the same rows.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::command::{ADMIN_KEY, Served, key_of, seeded};
use crate::service::{Response, request, two_instances};
use crate::support::engines::redis_url;
use crate::support::wait::{PATIENCE, eventually};

const INBOX: &str = "/api/v1/companies/1/inbox";
const OVERVIEW: &str = "/api/v1/companies/1/overview";
const PAGE: &str = "/api/v1/companies/1/contacts?size=10";
/// What the service is started with.
const BOUND: Duration = Duration::from_secs(1);
/// Two chats of company 1.
const CHAT: &str = "00000000-0000-4000-8000-000000000014";
const OTHER: &str = "00000000-0000-4000-8000-000000000028";

async fn by_hand(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(connection)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// The inbox by the messages themselves: nothing that triggers keep is looked at.
async fn inbox(connection: &mut PgConnection, company: i64) -> Value {
    let sql = "select c.id::text, p.id, p.name, p.phone, m.id, m.sender, left(m.body, 200), m.created_at from chats c \
               left join contacts p on p.id = c.contact_id and p.company_id = c.company_id \
               left join lateral (select * from messages where chat_id = c.id order by created_at desc, id desc limit 1) m on true \
               where c.company_id = $1 order by m.created_at desc nulls last, c.id desc";
    type Line = (
        String,
        Option<i64>,
        Option<String>,
        Option<String>,
        Option<i64>,
        Option<String>,
        Option<String>,
        Option<DateTime<Utc>>,
    );
    let lines: Vec<Line> = sqlx::query_as(sql).bind(company).fetch_all(connection).await.unwrap();
    let chats = lines.iter().take(50).map(|(chat, contact, name, phone, message, sender, body, at)| {
        let contact = contact.map(|id| json!({ "id": id, "name": name, "phone": phone }));
        let message = message.map(|id| json!({ "id": id, "sender": sender, "body": body, "createdAt": at }));
        json!({ "chat": chat, "contact": contact, "lastMessage": message })
    });
    json!({ "company": company, "chats": chats.collect::<Vec<_>>(), "more": lines.len() > 50 })
}

/// All contacts, in the order of the pages.
async fn contacts(connection: &mut PgConnection, company: i64) -> Vec<Value> {
    let sql =
        "select id, phone, name, email from contacts where company_id = $1 order by name nulls last, id";
    let all: Vec<(i64, String, Option<String>, Option<String>)> =
        sqlx::query_as(sql).bind(company).fetch_all(connection).await.unwrap();
    let shown = all.into_iter().map(|(id, phone, name, email)| {
        json!({ "id": id, "company": company, "phone": phone, "name": name, "email": email })
    });
    shown.collect()
}

async fn page(connection: &mut PgConnection, company: i64) -> Value {
    let all = contacts(connection, company).await;
    json!({ "company": company, "contacts": all[..all.len().min(10)], "more": all.len() > 10 })
}

async fn overview(connection: &mut PgConnection, company: i64) -> Value {
    let sql = "select name, (select count(*) from users u where u.company_id = c.id), \
               (select count(*) from contacts p where p.company_id = c.id), \
               (select count(*) from chats h where h.company_id = c.id) from companies c where id = $1";
    let (name, users, contacts, chats): (String, i64, i64, i64) =
        sqlx::query_as(sql).bind(company).fetch_one(connection).await.unwrap();
    json!({ "company": company, "name": name, "users": users, "contacts": contacts, "chats": chats })
}

/// Until both answer it from memory: from then on only an invalidation makes it another.
async fn cached(instances: &[Served; 2], path: &str) {
    for instance in instances {
        eventually("an answer from L1", async || {
            request(instance, "GET", path, "", "").await.header("perto-tier") == Some("l1")
        })
        .await;
    }
}

/// No answer that is called fresh may lack what was committed longer than the bound before the request.
async fn seen(instances: &[Served; 2], path: &str, committed: Instant, what: &str, wanted: &Value) {
    for instance in instances {
        loop {
            let asked = committed.elapsed();
            let read = request(instance, "GET", path, "", "").await;
            assert_eq!(read.status, 200, "{what}: {}", read.text);
            if read.body == *wanted {
                break;
            }
            let fresh = read.header("perto-freshness") == Some("fresh");
            assert!(!fresh || asked < BOUND, "{what}, after {asked:?}: {}\nnot {wanted}", read.text);
            assert!(asked < PATIENCE, "{what}: never");
        }
    }
}

/// What no invalidation evicts, the auditor may find before the bound is over. That is no proof of anything.
async fn nothing_mended(instances: &[Served; 2]) {
    for instance in instances {
        let metrics = request(instance, "GET", "/api/v1/cache/metrics?scope=instance", "", "").await;
        for (cache, figures) in metrics.body["cache"].as_object().unwrap() {
            assert_eq!(figures["auditViolations"], json!(0), "{cache}: {figures}");
        }
    }
}

/// Does each of these by hand, and sees that both instances show it, though they had it in memory.
macro_rules! each_is_seen {
    ($instances:expr, $connection:expr, $path:expr, $oracle:ident, $steps:expr) => {
        for (what, sql) in $steps {
            cached(&$instances, $path).await;
            let before = $oracle($connection, 1).await;
            by_hand($connection, &sql).await;
            let (committed, wanted) = (Instant::now(), $oracle($connection, 1).await);
            assert_ne!(before, wanted, "{what} shows nothing");
            seen(&$instances, $path, committed, what, &wanted).await;
        }
        nothing_mended(&$instances).await;
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_shows_what_is_written_by_hand_within_the_bound() {
    let (database, a, b) = two_instances();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    for (chat, contact) in [(CHAT, 20), (OTHER, 40)] {
        let path = format!("/api/v1/chats/{chat}/messages");
        let message = json!({ "sender": "user", "body": "Hello", "contact": contact }).to_string();
        let posted = request(&a, "POST", &path, "perto-company: 1\r\n", message).await;
        assert_eq!(posted.status, 201, "{}", posted.text);
        let read = request(&b, "GET", INBOX, &posted.at_least(), "").await;
        assert_eq!(read.body, inbox(&mut connection, 1).await);
        assert_eq!(
            (&read.body["chats"][0]["chat"], &read.body["chats"][0]["contact"]["id"]),
            (&json!(chat), &json!(contact))
        );
    }
    let instances = [a, b];
    let message = |chat: &str, what: &str| {
        format!("insert into messages (chat_id, sender, body) values ('{chat}', 'contact', '{what}')")
    };
    let newest = format!("(select last_message_id from chats where id = '{CHAT}')");
    let steps = [
        ("a message", message(CHAT, "by hand")),
        ("a long one", format!("insert into messages (chat_id, sender, body) values ('{CHAT}', 'user', repeat('é', 300))")),
        ("another text", format!("update messages set body = 'changed' where id = {newest}")),
        ("another time", format!("update messages set created_at = now() - interval '40 days' where id = {newest}")),
        ("another chat's", format!("update messages set chat_id = '{OTHER}' where id = {newest}")),
        ("a message less", format!("delete from messages where id = {newest}")),
        ("a contact with another name", "update contacts set name = 'Renamed' where id = 20".to_owned()),
        ("a contact who moves to another company", "update contacts set company_id = 2 where id = 20".to_owned()),
        ("a contact who comes back", "update contacts set company_id = 1, name = 'Back' where id = 20".to_owned()),
        ("a contact less", "delete from contacts where id = 40".to_owned()),
        ("a contact of a chat", format!("update chats set contact_id = 60 where id = '{OTHER}'")),
        ("a chat without messages", "insert into chats (id, company_id) values ('00000000-0000-4000-9000-000000000001', 1)".to_owned()),
        ("its first message", message("00000000-0000-4000-9000-000000000001", "first")),
        ("a chat less", format!("delete from chats where id = '{CHAT}'")),
        (
            "more chats than are shown",
            "insert into chats (id, company_id) select ('00000000-0000-4000-9000-0000000010' || n)::uuid, 1 from generate_series(10, 60) n"
                .to_owned(),
        ),
        ("no message at all", "truncate messages".to_owned()),
    ];
    each_is_seen!(instances, &mut connection, INBOX, inbox, steps);
    // What it does not show leaves it where it is.
    by_hand(&mut connection, &message("00000000-0000-4000-8000-000000000001", "of another company")).await;
    by_hand(&mut connection, "update users set name = 'Somebody' where company_id = 1").await;
    tokio::time::sleep(BOUND).await;
    for instance in &instances {
        assert_eq!(request(instance, "GET", INBOX, "", "").await.header("perto-tier"), Some("l1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_contacts_shows_what_is_written_by_hand_within_the_bound() {
    let (database, a, b) = two_instances();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let instances = [a, b];
    let insert = |name: &str, phone: &str, company: i64| {
        format!("insert into contacts (company_id, phone, name) values ({company}, '{phone}', {name})")
    };
    let steps = [
        ("a contact", insert("'Aaron'", "+351912000001", 1)),
        ("another name", "update contacts set name = 'Zoe' where phone = '+351912000001'".to_owned()),
        ("the first one again", "update contacts set name = 'Aaron' where phone = '+351912000001'".to_owned()),
        ("another address", "update contacts set email = 'aaron@example.com' where phone = '+351912000001'".to_owned()),
        ("one who moves to another company", "update contacts set company_id = 2 where phone = '+351912000001'".to_owned()),
        ("one who comes from there", "update contacts set company_id = 1 where phone = '+351912000001'".to_owned()),
        ("one less", "delete from contacts where phone = '+351912000001'".to_owned()),
        (
            "many",
            "insert into contacts (company_id, phone, name) select 1, '+3519130' || 10000 + n, 'A ' || n from generate_series(1, 700) n"
                .to_owned(),
        ),
        ("nobody with a name", "update contacts set name = null".to_owned()),
        ("few", "delete from contacts where id > 60 and company_id = 1".to_owned()),
        ("nobody", "delete from contacts where company_id = 1".to_owned()),
    ];
    each_is_seen!(instances, &mut connection, PAGE, page, steps);
    by_hand(&mut connection, &insert("'Elsewhere'", "+351912000002", 2)).await;
    tokio::time::sleep(BOUND).await;
    for instance in &instances {
        assert_eq!(
            request(instance, "GET", PAGE, "", "").await.header("perto-tier"),
            Some("l1"),
            "another company's"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overview_shows_what_is_written_by_hand_within_the_bound_and_stays_where_nothing_it_counts_changes()
 {
    let (database, a, b) = two_instances();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let instances = [a, b];
    let steps = [
        ("a contact", "insert into contacts (company_id, phone) values (1, '+351912000001')"),
        ("a contact who moves away", "update contacts set company_id = 2 where phone = '+351912000001'"),
        ("one who comes back", "update contacts set company_id = 1 where phone = '+351912000001'"),
        ("a contact less", "delete from contacts where phone = '+351912000001'"),
        ("a user", "insert into users (company_id, name, email) values (1, 'New', 'new@example.com')"),
        ("a user less", "delete from users where email = 'new@example.com'"),
        ("a chat", "insert into chats (id, company_id) values ('00000000-0000-4000-9000-000000000001', 1)"),
        ("a chat less", "delete from chats where id = '00000000-0000-4000-9000-000000000001'"),
        ("another name", "update companies set name = 'Renamed' where id = 1"),
    ];
    let steps = steps.map(|(what, sql)| (what, sql.to_owned()));
    each_is_seen!(instances, &mut connection, OVERVIEW, overview, steps);
    cached(&instances, OVERVIEW).await;
    let message =
        format!("insert into messages (chat_id, sender, body) values ('{CHAT}', 'user', 'one more')");
    for sql in [&message, "update contacts set name = 'Same place'", "update users set role = 'admin'"] {
        by_hand(&mut connection, sql).await;
    }
    tokio::time::sleep(BOUND).await;
    for instance in &instances {
        let read = request(instance, "GET", OVERVIEW, "", "").await;
        assert_eq!(read.header("perto-tier"), Some("l1"), "{}", read.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_of_each_size_are_all_contacts_by_name_each_once() {
    let database = seeded();
    let a = Served::start(&database, "a");
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    // Several of one name, and some without any.
    by_hand(
        &mut connection,
        "update contacts set name = 'Ann' where id % 3 = 0; update contacts set name = null where id % 7 = 0",
    )
    .await;
    let all = contacts(&mut connection, 1).await;
    for size in [10, 20, 100] {
        let mut shown = Vec::new();
        for page in 1.. {
            let path = format!("/api/v1/companies/1/contacts?page={page}&size={size}");
            let read = request(&a, "GET", &path, "", "").await;
            shown.extend(read.body["contacts"].as_array().unwrap().iter().cloned());
            assert!(page < 10, "it never ends");
            if read.body["more"] == json!(false) {
                break;
            }
        }
        assert_eq!(shown, all, "in pages of {size}");
    }
    let beyond = request(&a, "GET", "/api/v1/companies/1/contacts?page=1000&size=100", "", "").await;
    assert_eq!(beyond.body, json!({ "company": 1, "contacts": [], "more": false }));
    let usual = request(&a, "GET", "/api/v1/companies/1/contacts", "", "").await;
    assert_eq!(usual.body["contacts"].as_array().unwrap(), &all[..all.len().min(50)]);
    for (query, field) in [
        ("page=0", "page"),
        ("page=1001", "page"),
        ("page=-1", "page"),
        ("page=x", "page"),
        ("size=0", "size"),
        ("size=55", "size"),
        ("size=110", "size"),
        ("page=1&page=2", "page"),
        ("cursor=1", "cursor"),
    ] {
        let refused = request(&a, "GET", &format!("/api/v1/companies/1/contacts?{query}"), "", "").await;
        assert_eq!(
            (refused.status, &refused.body["field"]),
            (400, &json!(field)),
            "{query}: {}",
            refused.text
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_another_company_are_not_there_and_nobody_learns_whether_there_is_one() {
    let database = seeded();
    let (one, two) = (key_of(&database, 1), key_of(&database, 2));
    let a = Served::start_on(&database.url, &redis_url(), "a", &["--admin-key", ADMIN_KEY]);
    let get = async |path: &str, key: &str| {
        request(&a, "GET", path, &format!("authorization: Bearer {key}\r\n"), "").await
    };
    for list in ["inbox", "overview", "contacts", "contacts?page=2&size=10"] {
        let path = |company: i64| format!("/api/v1/companies/{company}/{list}");
        // In memory by its owner: no reason to show it to anybody else.
        for _ in 0..2 {
            let own = get(&path(1), &one).await;
            assert_eq!((own.status, &own.body["company"]), (200, &json!(1)), "{}", own.text);
        }
        let said =
            |read: &Response| (read.status, read.text.clone(), read.header("perto-token").map(str::to_owned));
        let (others, nobodys) = (get(&path(1), &two).await, get(&path(999_999), &two).await);
        assert_eq!(others.status, 404, "{list}: {}", others.text);
        assert_eq!(said(&others), said(&nobodys), "{list}");
        assert_eq!(others.header("perto-token"), None, "it would change with what it is of");
        assert_eq!(get(&path(1), ADMIN_KEY).await.status, 200);
    }
    // Nor can a contact be brought into a chat of another company.
    let bearer = format!("authorization: Bearer {two}\r\n");
    for (chat, contact, status) in [
        (CHAT, 20, 404),
        (CHAT, 1, 404),
        ("00000000-0000-4000-8000-000000000001", 20, 422),
        ("00000000-0000-4000-9000-00000000000b", 20, 422),
        ("00000000-0000-4000-9000-00000000000b", 999_999, 422),
        ("00000000-0000-4000-9000-00000000000b", 0, 422),
        ("00000000-0000-4000-9000-00000000000b", 1, 201),
    ] {
        let message = json!({ "sender": "user", "body": "whose?", "contact": contact }).to_string();
        let posted = request(&a, "POST", &format!("/api/v1/chats/{chat}/messages"), &bearer, message).await;
        assert_eq!(posted.status, status, "{chat}, {contact}: {}", posted.text);
        if status == 422 {
            assert_eq!(posted.body["field"], "contact", "{}", posted.text);
            let inbox = get("/api/v1/companies/2/inbox", &two).await;
            assert!(!inbox.text.contains("whose?"), "nothing is written: {}", inbox.text);
        }
    }
}

/// A change costs what it tells of: its chat or its row, and the lists that show it.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_invalidates_the_lists_that_show_it_and_no_others() {
    let database = seeded();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let newest = format!("(select last_message_id from chats where id = '{CHAT}')");
    let phone: String = sqlx::query_scalar("select phone from contacts where id = 20")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    let of_contact = |more: &[&str]| {
        let mut rows = vec![
            format!("contact 20"),
            format!("contact_by_phone 1:{phone}"),
            format!("contacts_of_company 1"),
        ];
        rows.extend(more.iter().map(|&row| row.to_owned()));
        rows
    };
    let of_chat = |more: &[&str]| {
        let mut rows: Vec<String> = more.iter().map(|&row| row.to_owned()).collect();
        rows.push(format!("message {CHAT}"));
        rows
    };
    for (sql, wanted) in [
        (
            format!("insert into messages (chat_id, sender, body) values ('{CHAT}', 'user', 'new')"),
            of_chat(&["inbox 1"]),
        ),
        (format!("update messages set body = 'other' where id = {newest}"), of_chat(&["inbox 1"])),
        // Beyond the first 200 characters it looks as before, and so does what is not the newest.
        (
            format!("update messages set body = rpad('x', 200, 'x') where id = {newest}"),
            of_chat(&["inbox 1"]),
        ),
        (format!("update messages set body = body || 'y' where id = {newest}"), of_chat(&[])),
        (
            format!(
                "update messages set body = 'old' where id = (select min(id) from messages where chat_id = '{CHAT}')"
            ),
            of_chat(&[]),
        ),
        (
            format!(
                "delete from messages where id = (select min(id) from messages where chat_id = '{CHAT}')"
            ),
            of_chat(&[]),
        ),
        ("update contacts set name = 'Renamed' where id = 20".to_owned(), of_contact(&[])),
        (
            "update contacts set company_id = 2 where id = 20".to_owned(),
            of_contact(&["contact_by_phone 2:", "contacts_of_company 2", "overview 1", "overview 2"]),
        ),
        (format!("update chats set contact_id = 40 where id = '{CHAT}'"), vec!["inbox 1".to_owned()]),
        ("update users set name = 'Renamed' where id = 20".to_owned(), vec!["user 20".to_owned()]),
    ] {
        by_hand(&mut connection, &sql).await;
        let logged: Vec<String> = sqlx::query_scalar(
            "select distinct cache || ' ' || coalesce(k, 'all') from perto.invalidation left join unnest(keys) k on true \
             where xid = (select max(xid) from perto.invalidation)",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        let mut wanted: Vec<String> =
            wanted.into_iter().map(|row| if row.ends_with(':') { row + &phone } else { row }).collect();
        wanted.sort_unstable();
        let mut logged = logged;
        logged.sort_unstable();
        assert_eq!(logged, wanted, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chats_that_were_there_before_inboxes_have_their_newest_messages() {
    let database = seeded();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let before = "drop function chats_last_message cascade; drop index contacts_by_name; create index chats_company on chats (company_id); \
        alter table chats drop column contact_id, drop column last_message_id, drop column last_message_at, \
          drop column last_sender, drop column last_body cascade; \
        delete from _sqlx_migrations where version >= 8";
    by_hand(&mut connection, before).await;
    let added = "insert into messages (chat_id, sender, body) select id, 'user', repeat('é', 300) from chats where company_id = 1; \
        delete from messages where chat_id = (select max(id::text)::uuid from chats)";
    by_hand(&mut connection, added).await;
    crate::command::succeed(crate::command::perto(&database.url, "").arg("migrate"));
    let a = Served::start(&database, "a");
    for company in 1..=20 {
        let read = request(&a, "GET", &format!("/api/v1/companies/{company}/inbox"), "", "").await;
        assert_eq!(read.body, inbox(&mut connection, company).await);
    }
}

/// Who takes away the newest message waits for who is just writing a newer one, and looks again.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_message_of_a_chat_is_that_of_the_writer_who_committed_meanwhile() {
    let database = seeded();
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let mut writer = PgConnection::connect(&database.url).await.unwrap();
    let mut writing = writer.begin().await.unwrap();
    by_hand(
        &mut writing,
        &format!("insert into messages (chat_id, sender, body) values ('{CHAT}', 'user', 'newer')"),
    )
    .await;
    let mut other = PgConnection::connect(&database.url).await.unwrap();
    let take_away =
        format!("delete from messages where id = (select max(id) from messages where chat_id = '{CHAT}')");
    let waits =
        "select true from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    tokio::join!(by_hand(&mut other, &take_away), async {
        eventually("the other one waits", async || {
            sqlx::query(waits).fetch_optional(&mut connection).await.unwrap().is_some()
        })
        .await;
        writing.commit().await.unwrap();
    });
    let sql = "select last_body from chats where id = $1::uuid";
    let last: String = sqlx::query_scalar(sql).bind(CHAT).fetch_one(&mut connection).await.unwrap();
    assert_eq!(last, "newer");
}

/// Nor is anything lost, or waited for in a circle, where many write two chats at once.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_message_of_a_chat_is_right_after_many_have_written_it_at_once() {
    let database = seeded();
    let url = database.url.as_str();
    let writer = async |n: i64| {
        let mut connection = PgConnection::connect(url).await.unwrap();
        for round in 0..60 {
            let chat = [CHAT, OTHER][usize::try_from((n + round) % 2).unwrap()];
            let sql = match (n + round) % 4 {
                0 | 1 => format!(
                    "insert into messages (chat_id, sender, body) values ('{chat}', 'user', '{n} {round}')"
                ),
                2 => format!(
                    "delete from messages where id = (select max(id) from messages where chat_id = '{chat}')"
                ),
                _ => format!(
                    "with moved as (select max(id) as id from messages where chat_id = '{chat}') \
                     update messages m set body = '{round} {n}', chat_id = case when {round} % 8 = 3 then '{OTHER}' else chat_id end \
                     from moved where m.id = moved.id"
                ),
            };
            by_hand(&mut connection, &sql).await;
        }
    };
    join_all((0..8).map(writer)).await;
    let mut connection = PgConnection::connect(url).await.unwrap();
    let sql = "select c.id::text from chats c left join lateral \
                 (select * from messages where chat_id = c.id order by created_at desc, id desc limit 1) m on true \
               where (c.last_message_id, c.last_message_at, c.last_sender, c.last_body) \
                 is distinct from (m.id, m.created_at, m.sender, left(m.body, 200))";
    let wrong: Vec<String> = sqlx::query_scalar(sql).fetch_all(&mut connection).await.unwrap();
    assert!(wrong.is_empty(), "{wrong:?}");
}
