//! Numbers, names and addresses that look the same, or were changed before they came.

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::command::{Database, Served, perto, succeed};
use crate::service::{Response, request, two_instances};

async fn post(served: &Served, path: &str, headers: &str, body: &Value) -> Response {
    request(served, "POST", path, headers, body.to_string()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_was_changed_before_it_came_is_refused_wherever_it_is_asked_for() {
    let (_database, a, _b) = two_instances();
    for (region, phone) in
        [("US", "3.10820712E9"), ("DE", "1701234567.0"), ("IN", "9.87654321E9"), ("BR", "1.19876543E10")]
    {
        let change = json!({ "region": region }).to_string();
        assert_eq!(request(&a, "PATCH", "/api/v1/companies/1", "", change).await.status, 200);
        let contacts = "/api/v1/companies/1/contacts";
        let said = post(&a, &format!("{contacts}/validate"), "", &json!([{ "phone": phone }])).await;
        assert_eq!(
            (&said.body[0]["valid"], &said.body[0]["phone"]),
            (&json!(false), &Value::Null),
            "{}",
            said.text
        );
        let reason = said.body[0]["flaws"][0]["reason"].as_str().unwrap();
        assert!(reason.contains("format the column as text"), "{reason}");
        let made = post(&a, contacts, "", &json!({ "phone": phone })).await;
        let read = request(&a, "GET", &format!("{contacts}/by-phone/{phone}"), "", "").await;
        let changed =
            request(&a, "PATCH", &format!("{contacts}/20"), "", json!({ "phone": phone }).to_string()).await;
        for refused in [made, read, changed] {
            assert_eq!((refused.status, &refused.body["field"]), (422, &json!("phone")), "{}", refused.text);
            assert!(refused.text.contains("format the column as text"), "{}", refused.text);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_sees_is_no_part_of_a_number_a_name_or_an_address() {
    let (_database, a, _b) = two_instances();
    let contacts = "/api/v1/companies/1/contacts";
    let new = json!({
        "phone": "\u{202a}+351\u{200e}9123\u{fe0e}45678\u{202c}",
        "name": "\u{202e}Ann\u{200b} \u{2066}علی\u{200c}رضا\u{2069}",
        "email": "\u{feff}ann\u{200b}@example.com",
    });
    let made = post(&a, contacts, "", &new).await;
    assert_eq!(made.status, 201, "{}", made.text);
    assert_eq!(
        (&made.body["phone"], &made.body["name"], &made.body["email"]),
        (&json!("+351912345678"), &json!("Ann علی\u{200c}رضا"), &json!("ann@example.com"))
    );
    let path = format!("{contacts}/by-phone/%E2%80%AA%EF%BC%8B351912345678%E2%80%8E");
    assert_eq!(request(&a, "GET", &path, &made.at_least(), "").await.body["id"], made.body["id"]);
    let empty =
        post(&a, contacts, "", &json!({ "phone": "+351912345679", "name": "\u{200b}\u{3164}" })).await;
    assert_eq!((empty.status, &empty.body["field"]), (422, &json!("name")), "{}", empty.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_company_has_one_user_of_an_address_however_it_is_spelled() {
    let (_database, a, _b) = two_instances();
    let user = |email: &str| json!({ "name": "Ann", "email": email });
    let of = |company: i64| format!("perto-company: {company}\r\n");
    let made = post(&a, "/api/v1/users", &of(3), &user("Ann@Example.com")).await;
    assert_eq!((made.status, &made.body["email"]), (201, &json!("Ann@Example.com")), "{}", made.text);
    for email in ["ann@example.com", "ANN@EXAMPLE.COM", "Ann@Example.com", "a\u{200b}nn@example.com"] {
        let refused = post(&a, "/api/v1/users", &of(3), &user(email)).await;
        assert_eq!((refused.status, &refused.body["field"]), (409, &json!("email")), "{}", refused.text);
    }
    let elsewhere = post(&a, "/api/v1/users", &of(4), &user("ann@example.com")).await;
    assert_eq!(elsewhere.status, 201, "another company's users are others: {}", elsewhere.text);
    let path = format!("/api/v1/users/{}", made.body["id"]);
    let own = request(&a, "PATCH", &path, "", json!({ "email": "ann@example.com" }).to_string()).await;
    assert_eq!(own.status, 200, "its own, in other capitals: {}", own.text);
    let other = post(&a, "/api/v1/users", &of(3), &user("bob@example.com")).await;
    let path = format!("/api/v1/users/{}", other.body["id"]);
    let taken = request(&a, "PATCH", &path, "", json!({ "email": "aNN@example.com" }).to_string()).await;
    assert_eq!((taken.status, &taken.body["field"]), (409, &json!("email")), "{}", taken.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn users_who_shared_an_address_before_stay_and_nobody_joins_them() {
    let database = Database::new();
    succeed(perto(&database.url, "").arg("migrate"));
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    // As it was before the migration, with what it let in.
    let before = "drop trigger users_twin on users; drop function users_twin; alter table users drop column twin cascade;
        alter table imports drop column separator; delete from _sqlx_migrations where version = 5;
        insert into companies (name, region) values ('C', 'PT'), ('D', 'PT');
        insert into users (company_id, name, email) values (1, 'First', 'ann@example.com'), (1, 'Second', 'Ann@example.com'),
          (1, 'Third', 'ANN@example.com'), (1, 'Bob', 'bob@example.com'), (2, 'Ann', 'Ann@example.com')";
    sqlx::raw_sql(before).execute(&mut connection).await.unwrap();
    succeed(perto(&database.url, "").arg("migrate"));
    let served = Served::start(&database, "a");
    let twins: Vec<(i64, bool)> =
        sqlx::query_as("select id, twin from users order by id").fetch_all(&mut connection).await.unwrap();
    assert_eq!(twins, [(1, false), (2, true), (3, true), (4, false), (5, false)]);
    let change = async |id: i64, change: Value| {
        request(&served, "PATCH", &format!("/api/v1/users/{id}"), "", change.to_string()).await.status
    };
    for id in [1, 2, 3] {
        assert_eq!(change(id, json!({ "name": "Changed" })).await, 200, "each may be changed");
    }
    assert_eq!(change(2, json!({ "email": "aNN@example.com" })).await, 200);
    assert_eq!(change(4, json!({ "email": "ann@Example.com" })).await, 409);
    assert_eq!(change(3, json!({ "email": "third@example.com" })).await, 200);
    assert_eq!(change(3, json!({ "email": "ann@example.com" })).await, 409, "who has left stays out");
    assert_eq!(request(&served, "DELETE", "/api/v1/users/1", "", "").await.status, 200);
    let restored =
        "insert into users (company_id, name, email, twin) values (1, 'Restored', 'aNn@example.com', true)";
    sqlx::raw_sql(restored).execute(&mut connection).await.unwrap();
    let new = json!({ "name": "New", "email": "ann@EXAMPLE.com" });
    let refused = post(&served, "/api/v1/users", "perto-company: 1\r\n", &new).await;
    assert_eq!((refused.status, &refused.body["field"]), (409, &json!("email")), "{}", refused.text);
}
