//! Imports of contacts, over HTTP, on one instance and on several that die.

use std::collections::BTreeMap;
use std::time::Duration;

use perto::postgres::{Watch, query_as, watch};
use perto::{Cache, Load, Perto, Tier};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::command::{Database, Served, perto, succeed};
use crate::service::request;
use crate::support::engines::redis_url;
use crate::support::wait::{ends, eventually};

const CSV: &str = "text/csv; charset=utf-8";
const NDJSON: &str = "application/x-ndjson";

struct Answer {
    status: u16,
    head: String,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

/// One request on a connection of its own. HTTP/1.0: the answer ends with the connection.
async fn send(served: &Served, method: &str, path: &str, content_type: &str, body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(&served.address).await.unwrap();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.0\r\nhost: localhost\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    ends("an answer", stream.read_to_end(&mut answer)).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), text: text.to_owned() }
}

fn imports(company: i64) -> String {
    format!("/api/v1/companies/{company}/contacts/imports")
}

/// Uploads a file, and returns where its import is.
async fn upload(served: &Served, company: i64, content_type: &str, file: &[u8]) -> String {
    let answer = send(served, "POST", &imports(company), content_type, file).await;
    assert_eq!(answer.status, 202, "{}", answer.text);
    let path = format!("{}/{}", imports(company), answer.json()["id"].as_str().unwrap());
    assert!(answer.head.contains(&format!("location: {path}")), "{}", answer.head);
    path
}

async fn state(served: &Served, import: &str) -> Value {
    send(served, "GET", import, "", b"").await.json()
}

/// Waits for the end of an import.
async fn ended(served: &Served, import: &str) -> Value {
    let mut seen = Value::Null;
    crate::support::wait::eventually_within(Duration::from_secs(120), "the end of an import", async || {
        seen = state(served, import).await;
        !seen["finishedAt"].is_null()
    })
    .await;
    seen
}

async fn rejected(served: &Served, import: &str) -> String {
    let answer = send(served, "GET", &format!("{import}/rejected"), "", b"").await;
    assert!(answer.head.contains("content-type: text/csv"), "{}", answer.head);
    assert!(answer.head.contains("content-disposition: attachment"), "{}", answer.head);
    answer.text
}

/// A database with ten companies: 1 to 10, of the regions PT, US, BR and DE in turn.
fn prepared() -> Database {
    let database = Database::new();
    succeed(perto(&database.url, &redis_url()).arg("migrate"));
    let companies = ["--companies", "10", "--users", "0", "--contacts", "0", "--messages", "0"];
    succeed(perto(&database.url, &redis_url()).arg("seed").args(companies));
    database
}

async fn sql(database: &Database, sql: &str) {
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
}

async fn count(database: &Database, of: &str) -> i64 {
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let sql = format!("select count(*) from {of}");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap()
}

type Contacts = BTreeMap<String, (Option<String>, Option<String>)>;

async fn contacts(database: &Database, company: i64) -> Contacts {
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let rows: Vec<(String, Option<String>, Option<String>)> =
        sqlx::query_as("select phone, name, email from contacts where company_id = $1")
            .bind(company)
            .fetch_all(&mut connection)
            .await
            .unwrap();
    rows.into_iter().map(|(phone, name, email)| (phone, (name, email))).collect()
}

/// A file, and what it must lead to.
struct Case {
    file: String,
    accepted: i64,
    rejected: Vec<(i64, &'static str)>,
    contacts: Contacts,
}

/// So many rows, of which one in a hundred is bad and one in fifty has the phone of an earlier one.
fn many(rows: i64) -> Case {
    let mut case = Case {
        file: "email,phone,name\n".to_owned(),
        accepted: 0,
        rejected: Vec::new(),
        contacts: Contacts::new(),
    };
    for row in 0..rows {
        let line = row + 2;
        let phone = if row % 50 == 49 { row / 2 } else { row };
        let (e164, name) = (format!("+35191{phone:07}"), format!("Name {row}"));
        let (written, reason) = match row % 300 {
            100 => ("12".to_owned(), Some("phone: is not a phone number of any country")),
            200 => (e164.clone(), Some("email: is not an e-mail address")),
            299 => (e164.clone(), Some("record: has more or fewer fields than the header")),
            _ if row % 2 == 0 => (format!("91 {phone:07}"), None),
            _ => (e164.clone(), None),
        };
        let email = match row % 300 {
            200 => "nobody at all".to_owned(),
            _ if row % 3 == 0 => format!("p{row}@example.com"),
            _ => String::new(),
        };
        let more = if row % 300 == 299 { ",x" } else { "" };
        case.file.push_str(&format!("{email},{written},{name}{more}\n"));
        match reason {
            Some(reason) => case.rejected.push((line, reason)),
            None => {
                case.accepted += 1;
                let contact = case.contacts.entry(e164).or_default();
                contact.0 = Some(name);
                contact.1 = Some(email).filter(|email| !email.is_empty()).or(contact.1.take());
            }
        }
    }
    case
}

/// Checks an import that is done, to the last row.
async fn check(database: &Database, served: &Served, company: i64, import: &str, case: &Case) {
    let seen = ended(served, import).await;
    assert_eq!(seen["state"], "done", "{seen}");
    let bad = case.rejected.len();
    assert_eq!(
        (&seen["rows"], &seen["accepted"], &seen["rejected"]),
        (&json!(case.accepted + bad as i64), &json!(case.accepted), &json!(bad)),
        "{seen}"
    );
    assert_eq!((&seen["bytes"], &seen["bytesDone"]), (&json!(case.file.len()), &json!(case.file.len())));
    let mut reasons = BTreeMap::<&str, i64>::new();
    case.rejected.iter().for_each(|(_, reason)| *reasons.entry(reason).or_default() += 1);
    assert_eq!(seen["reasons"], json!(reasons));
    let file = rejected(served, import).await;
    let lines: Vec<String> =
        case.rejected.iter().map(|(line, reason)| format!("{line},\"{reason}\",")).collect();
    assert_eq!(file.lines().count(), bad + 1);
    for (line, expected) in file.lines().skip(1).zip(&lines) {
        assert!(line.starts_with(expected), "{line} is not {expected}");
    }
    assert!(contacts(database, company).await == case.contacts, "contacts are not those of the file");
    assert_eq!(count(database, "import_chunks").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_csv_file_becomes_contacts_and_its_bad_rows_a_file_with_their_reasons() {
    let database = prepared();
    let served = Served::start(&database, "a");
    let long = "x".repeat(70_000);
    let mut file = b"\xef\xbb\xbfName, PHONE ,eMail\r\n".to_vec();
    let company = 2; // of PT: see `prepared`
    sql(&database, "update companies set region = 'PT' where id = 2").await;
    for line in [
        "Ann,912 345 678,ann@example.com\r\n",                 // 2
        "\"Bob \"\"the\nbuilder\"\"\",+351912345679,\r\n",     // 3, 4: a line end in a name
        "\"Smith, Cleo\",+1 212 555 2368, cleo@example.com\n", // 5
        "\r\n",                                                // 6
        "Dan,12345,\n",                                        // 7
        ",,\n",                                                // 8: no row
        "=1+1,912345670,@\n",                                  // 9
        "Eve,912345670\n",                                     // 10
        "Eve,912345670,,\n",                                   // 11
    ] {
        file.extend_from_slice(line.as_bytes());
    }
    file.extend_from_slice(b"\xff\xfe,912345670,\n"); // 12
    file.extend_from_slice(format!("{long},912345670,\n").as_bytes()); // 13
    file.extend_from_slice(b"Nu\0l,912345670,\n"); // 14
    file.extend_from_slice(format!("{},912345670,\n", "n".repeat(201)).as_bytes()); // 15
    file.extend_from_slice(b"Fay,912345671,fay@example.com\n\"Gus,912345672,"); // 16, 17: cut off
    let import = upload(&served, company, CSV, &file).await;
    let seen = ended(&served, &import).await;
    assert_eq!(seen["state"], "done", "{seen}");
    assert_eq!(
        (&seen["rows"], &seen["accepted"], &seen["rejected"]),
        (&json!(13), &json!(3), &json!(10)),
        "{seen}"
    );
    let kept = |text: &str| format!("{}…", &text[..1024]);
    let expected = [
        "line,reason,record".to_owned(),
        "3,\"name: must not have control characters\",\"\"\"Bob \"\"\"\"the\nbuilder\"\"\"\"\"\",+351912345679,\"".to_owned(),
        "7,\"phone: is not a phone number of any country\",\"Dan,12345,\"".to_owned(),
        "9,\"email: is not an e-mail address\",\"'=1+1,912345670,@\"".to_owned(),
        "10,\"record: has more or fewer fields than the header\",\"Eve,912345670\"".to_owned(),
        "11,\"record: has more or fewer fields than the header\",\"Eve,912345670,,\"".to_owned(),
        "12,\"record: is not UTF-8, but perhaps Windows-1252 or Latin-1: save the file as UTF-8\",\"\u{fffd}\u{fffd},912345670,\"".to_owned(),
        format!("13,\"record: is longer than 64 KiB\",\"{}\"", kept(&long)),
        "14,\"name: must not have control characters\",\"Nul,912345670,\"".to_owned(),
        format!("15,\"name: must have 1 to 200 characters\",\"{},912345670,\"", "n".repeat(201)),
        "17,\"record: has a quote that is not closed\",\"\"\"Gus,912345672,\"".to_owned(),
        String::new(),
    ];
    assert_eq!(rejected(&served, &import).await, expected.join("\r\n"));
    let text = |text: &str| Some(text.to_owned());
    let expected = [
        ("+351912345678", (text("Ann"), text("ann@example.com"))),
        ("+12125552368", (text("Smith, Cleo"), text("cleo@example.com"))),
        ("+351912345671", (text("Fay"), text("fay@example.com"))),
    ];
    let expected: Contacts = expected.into_iter().map(|(phone, rest)| (phone.to_owned(), rest)).collect();
    assert_eq!(contacts(&database, company).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ndjson_file_becomes_contacts_and_its_bad_rows_a_file_with_their_reasons() {
    let database = prepared();
    let served = Served::start(&database, "a");
    let file = concat!(
        "\u{feff}{\"phone\":\"+351912345678\",\"name\":\"Ann\",\"email\":null}\r\n",
        "\n  \n",
        "{\"phone\":\"+351912345679\",\"name\":\"B\\nob\"}\n",
        "{\"name\":\"Cleo\"}\n",
        "{\"phone\":\"+351912345670\",\"nme\":\"Dan\"}\n",
        "{\"phone\":\"+351912345670\",\"phone\":\"+351912345671\"}\n",
        "{\"phone\":351912345670}\n",
        "[\"+351912345670\",\"Eve\",null]\n",
        "{\"phone\":\"+351912345670\"\n",
        "{\"phone\":\"+351912345671\",\"name\":\"x\\u0000\"}\n",
        "{\"email\":\"fay@example.com\",\"phone\":\"+351912345672\"}",
    );
    let import = upload(&served, 1, NDJSON, file.as_bytes()).await;
    let seen = ended(&served, &import).await;
    assert_eq!(
        (&seen["state"], &seen["accepted"], &seen["format"]),
        (&json!("done"), &json!(2), &json!("ndjson"))
    );
    let shape = "record: is not an object of phone, name and email, each a text and once";
    let expected = [
        (4, "name: must not have control characters"),
        (5, "phone: is missing"),
        (6, shape),
        (7, shape),
        (8, shape),
        (9, shape),
        (10, "record: is not JSON"),
        (11, "name: must not have control characters"),
    ];
    let file = rejected(&served, &import).await;
    let lines: Vec<&str> = file.lines().skip(1).collect();
    assert_eq!(lines.len(), expected.len(), "{file}");
    for (line, (number, reason)) in lines.iter().zip(expected) {
        assert!(line.starts_with(&format!("{number},\"{reason}\",")), "{line}");
    }
    let expected: Contacts = [
        ("+351912345678".to_owned(), (Some("Ann".to_owned()), None)),
        ("+351912345672".to_owned(), (None, Some("fay@example.com".to_owned()))),
    ]
    .into();
    assert_eq!(contacts(&database, 1).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_or_request_that_cannot_be_an_import_is_a_problem_and_leaves_nothing() {
    let database = prepared();
    let served = Served::start_with(&database, "a", &["--import-max-bytes", "100000"]);
    let long = format!("phone,{}\n", "x".repeat(70_000));
    let large = format!("phone\n{}", "+351912345678\n".repeat(8_000));
    for (company, content_type, file, status, says) in [
        (1, CSV, "", 422, "header: is missing"),
        (1, CSV, "\n\n", 422, "header: is missing"),
        (1, CSV, "phone,age\n+351912345678,7\n", 422, "header: has the column \"age\""),
        (1, CSV, "phone;age\n", 422, "header: has the column \"age\""),
        (1, CSV, "phone|name\n", 422, "header: has '|' between its columns"),
        (1, CSV, "p\0h\0o\0n\0e\0\n\0", 422, "header: is in UTF-16"),
        (1, CSV, "[{\"phone\":\"1\"}]", 422, "header: is JSON"),
        (1, CSV, "phone,name\r912345678,Ann\r", 422, "header: ends its lines with CR alone"),
        (1, "multipart/form-data; boundary=x", "--x\r\n", 415, "send the file itself"),
        (1, CSV, "phone,name,Phone\n", 422, "header: has the column \"phone\" twice"),
        (1, CSV, "name,email\n", 422, "header: lacks the column \"phone\""),
        (1, CSV, "\"phone\n", 422, "header: can't be read"),
        (1, CSV, &long, 422, "header: is longer"),
        (1, CSV, &large, 413, "100000 bytes"),
        (1, "application/json", "{}", 415, "content-type"),
        (1, "", "phone\n", 415, "content-type"),
        (1, "text/csv; charset=latin1", "phone\n", 415, "charset"),
        (99, CSV, "phone\n", 404, "company"),
    ] {
        let answer = send(&served, "POST", &imports(company), content_type, file.as_bytes()).await;
        assert_eq!(answer.status, status, "{content_type} {says}: {}", answer.text);
        assert!(answer.head.contains("application/problem+json"), "{}", answer.head);
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(says), "{says}: {detail}");
    }
    for (content_type, file) in [(CSV, "phone"), (CSV, "\r\nname,phone\r\n"), (NDJSON, "\n"), (NDJSON, "")] {
        let import = upload(&served, 1, content_type, file.as_bytes()).await;
        let seen = ended(&served, &import).await;
        assert_eq!((&seen["state"], &seen["rows"]), (&json!("done"), &json!(0)), "{seen}");
    }
    assert_eq!(count(&database, "imports").await, 4);
    assert_eq!(count(&database, "contacts").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_read_as_spreadsheets_write_it() {
    let database = prepared();
    let served = Served::start(&database, "a");
    let text = |text: &str| Some(text.to_owned());
    let ann: Contacts = [("+351912345678".to_owned(), (text("Ann; A"), text("ann@example.com")))].into();
    for (company, content_type, file) in [
        (1, CSV, "\u{feff}Telemóvel;Nome;E-mail\r\n+351912345678;\"Ann; A\";ann@example.com\r\n"),
        (
            2,
            "application/vnd.ms-excel",
            "sep=;\nphone;name;email\n+351912345678;\"Ann; A\";ann@example.com\n",
        ),
        (3, "text/tab-separated-values", "celular\tnome\te-mail\n+351912345678\tAnn; A\tann@example.com\n"),
        (4, CSV, "phone,name,email,,\n+351912345678,Ann; A,ann@example.com,,\n,,,,\n\n , ,,,\n"),
        (5, CSV, "phone;name;email\n=\"+351912345678\";\"=\"\"Ann; A\"\"\";\u{200b}ann@example.com\n;;\n"),
        (6, CSV, "\u{feff}sep=,\r\nphone,name,email,\n'+351912345678,Ann; A,ann@example.com"),
    ] {
        let import = upload(&served, company, content_type, file.as_bytes()).await;
        let seen = ended(&served, &import).await;
        assert_eq!(
            (&seen["state"], &seen["rows"], &seen["accepted"]),
            (&json!("done"), &json!(1), &json!(1)),
            "{seen}"
        );
        assert_eq!(contacts(&database, company).await, ann, "{file}");
    }
    let latin = upload(&served, 7, CSV, b"phone;name\n+351912345678;Jo\xe3o\n+351912345679;x;y\n").await;
    let extra = upload(&served, 8, CSV, b"phone,\n+351912345678,x\n").await;
    ended(&served, &latin).await;
    ended(&served, &extra).await;
    let file = rejected(&served, &latin).await;
    assert!(
        file.contains(
            "2,\"record: is not UTF-8, but perhaps Windows-1252 or Latin-1: save the file as UTF-8\""
        ) && file.contains("3,\"record: has more"),
        "{file}"
    );
    assert!(rejected(&served, &extra).await.contains("in a column that the header does not name"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_whose_phone_a_spreadsheet_changed_is_rejected_with_what_to_do() {
    let database = prepared();
    let served = Served::start(&database, "a");
    sql(
        &database,
        "update companies set region = 'US' where id = 1; update companies set region = 'DE' where id = 2; \
        update companies set region = 'IN' where id = 3; update companies set region = 'BR' where id = 4",
    )
    .await;
    for (company, phones) in [
        (1, ["3.10820712E9", "\"3,108,207,129\"", "3108207129.0"]),
        (2, ["1701234567.0", "1.701234567E9", "\"1701234567,0\""]),
        (3, ["9.87654321E9", "9876543210.0", "\"9,876,543,210\""]),
        (4, ["1.19876543E10", "\"1,19876543E+10\"", "11987654321.0"]),
    ] {
        let import =
            upload(&served, company, CSV, format!("phone\n{}\n", phones.join("\n")).as_bytes()).await;
        assert_eq!(ended(&served, &import).await["rejected"], 3);
        let file = rejected(&served, &import).await;
        assert_eq!(file.matches("format the column as text").count(), 3, "{file}");
        let lines: Vec<String> =
            phones.iter().map(|phone| json!({ "phone": phone.trim_matches('"') }).to_string()).collect();
        let import = upload(&served, company, NDJSON, lines.join("\n").as_bytes()).await;
        assert_eq!(ended(&served, &import).await["rejected"], 3);
        assert!(contacts(&database, company).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_too_many_rejected_rows_the_first_are_kept_and_all_are_counted() {
    let database = prepared();
    let served = Served::start_with(&database, "a", &["--import-max-rejects", "5100"]);
    let import = upload(&served, 1, NDJSON, "1\n".repeat(12_000).as_bytes()).await;
    assert_eq!(ended(&served, &import).await["rejected"], 12_000);
    let file = rejected(&served, &import).await;
    assert_eq!(file.lines().count(), 5_101);
    assert!(file.lines().last().unwrap().starts_with("5100,"));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_too_many_records_that_are_too_long_the_first_are_kept_and_all_are_counted() {
    let database = prepared();
    let served = Served::start_with(&database, "a", &["--import-max-rejects", "3"]);
    let file = format!("{}\n", "x".repeat(70_000)).repeat(5) + &"1\n".repeat(5);
    let import = upload(&served, 1, NDJSON, file.as_bytes()).await;
    assert_eq!(ended(&served, &import).await["rejected"], 10);
    let kept: Vec<String> =
        rejected(&served, &import).await.lines().skip(1).map(|line| line[..2].to_owned()).collect();
    assert_eq!(kept, ["1,", "2,", "3,"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_of_rejected_rows_is_bounded_in_bytes_for_an_import_and_for_its_company() {
    let database = prepared();
    let served = Served::start_with(&database, "a", &["--import-rejects-mib", "1"]);
    let mut kept = Vec::new();
    for _ in 0..5 {
        let import = upload(&served, 1, NDJSON, "1\n".repeat(12_000).as_bytes()).await;
        assert_eq!(ended(&served, &import).await["rejected"], 12_000);
        kept.push(rejected(&served, &import).await.lines().count() - 1);
    }
    assert!((4_000..8_000).contains(&kept[0]) && kept[3] > 4_000, "{kept:?}");
    assert!(kept[4] <= 1, "what was left of the room: {kept:?}");
    let metrics = request(&served, "GET", "/metrics", "", "").await.text;
    let told = metrics
        .lines()
        .find_map(|line| line.strip_prefix("perto_refused_total{perto_limit=\"too-many-rejects\"} "));
    assert!(told.unwrap().parse::<u32>().unwrap() >= 5, "each of the five ran into it: {told:?}");
    let other = upload(&served, 2, NDJSON, "1\n".repeat(12_000).as_bytes()).await;
    ended(&served, &other).await;
    assert!(rejected(&served, &other).await.lines().count() > 4_000, "another company has its own");
    let mut postgres = PgConnection::connect(&database.url).await.unwrap();
    let size = "select pg_total_relation_size('import_rejects')";
    let size: i64 = sqlx::query_scalar(size).fetch_one(&mut postgres).await.unwrap();
    assert!(size <= 2 * 5 * (1 << 20), "{size} bytes of 5 MiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_hold_their_headers_back_are_counted_and_end_soon() {
    let database = prepared();
    let served = Served::start(&database, "a");
    let head = format!(
        "POST {} HTTP/1.0\r\nhost: localhost\r\ncontent-type: text/csv\r\ncontent-length: 1000\r\n\r\n",
        imports(1)
    );
    let began = std::time::Instant::now();
    let slow = async || {
        let mut stream = TcpStream::connect(&served.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut answers, mut client) = stream.into_split();
        let mut answer = Vec::new();
        let trickling = async {
            while client.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            read = ends("an answer", answers.read_to_end(&mut answer)) => drop(read),
            () = trickling => {}
        }
        (String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or_default().to_owned(), began.elapsed())
    };
    let mut answers = futures_util::future::join_all((0..6).map(|_| slow())).await;
    answers.sort_by_key(|(_, after)| *after);
    let statuses: Vec<&str> = answers.iter().map(|(status, _)| status.as_str()).collect();
    assert_eq!(statuses, ["429", "429", "429", "429", "408", "408"]);
    assert!(answers[5].1 < Duration::from_secs(20), "{:?}", answers[5].1);
    // None of them is counted any more.
    upload(&served, 1, CSV, b"phone\n+351910000001\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_another_companys_secret() {
    let database = prepared();
    let served = Served::start(&database, "a");
    let import = upload(&served, 1, CSV, b"phone\n1\n").await;
    ended(&served, &import).await;
    let id = import.rsplit('/').next().unwrap();
    for (method, path) in [
        ("GET", format!("{}/{id}", imports(2))),
        ("DELETE", format!("{}/{id}", imports(2))),
        ("GET", format!("{}/{id}/rejected", imports(2))),
        ("GET", format!("{}/00000000-0000-4000-8000-000000000000", imports(1))),
    ] {
        assert_eq!(send(&served, method, &path, "", b"").await.status, 404, "{method} {path}");
    }
    assert_eq!(send(&served, "GET", &imports(2), "", b"").await.json(), json!([]));
    assert_eq!(send(&served, "GET", &imports(1), "", b"").await.json()[0]["id"], id);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_row_leaves_out_stays_and_the_last_row_of_a_phone_wins() {
    let database = prepared();
    let served = Served::start(&database, "a");
    sql(
        &database,
        "insert into contacts (company_id, phone, name, email) values (1, '+351912345678', 'Old', 'old@example.com'), \
         (2, '+351912345678', 'Theirs', null)",
    )
    .await;
    let file =
        "phone,name,email\n+351912345678,New,\n+351912345679,One,one@example.com\n+351 912 345 679,Two,\n";
    let import = upload(&served, 1, CSV, file.as_bytes()).await;
    assert_eq!(ended(&served, &import).await["accepted"], 3);
    let text = |text: &str| Some(text.to_owned());
    let expected: Contacts = [
        ("+351912345678".to_owned(), (text("New"), text("old@example.com"))),
        ("+351912345679".to_owned(), (text("Two"), text("one@example.com"))),
    ]
    .into();
    assert_eq!(contacts(&database, 1).await, expected);
    assert_eq!(contacts(&database, 2).await["+351912345678"].0, text("Theirs"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_company_has_so_many_imports_under_way_and_another_one_is_not_held_up() {
    let database = prepared();
    let idle = Served::start_with(&database, "idle", &["--imports-at-once", "0"]);
    let file = b"phone\n+351912345678\n";
    let (first, second) = (upload(&idle, 1, CSV, file).await, upload(&idle, 1, CSV, file).await);
    let refused = send(&idle, "POST", &imports(1), CSV, file).await;
    assert_eq!(refused.status, 429, "{}", refused.text);
    let theirs = upload(&idle, 2, CSV, file).await;
    let cancelled = send(&idle, "DELETE", &first, "", b"").await;
    assert_eq!((cancelled.status, &cancelled.json()["state"]), (200, &json!("cancelled")));
    let third = upload(&idle, 1, CSV, file).await;
    assert_eq!(state(&idle, &third).await["state"], "queued");
    eventually("the chunks of what was cancelled are gone", async || {
        count(&database, "import_chunks").await == 3
    })
    .await;
    // One at a time, in the order in which they came.
    let _working = Served::start_with(&database, "working", &["--imports-at-once", "1"]);
    let mut began = Vec::new();
    for import in [&second, &theirs, &third] {
        let seen = ended(&idle, import).await;
        assert_eq!(seen["state"], "done", "{seen}");
        began.push(seen["startedAt"].as_str().unwrap().to_owned());
    }
    assert!(began.is_sorted(), "{began:?}");
    let again = send(&idle, "DELETE", &second, "", b"").await;
    assert_eq!(again.json()["state"], "done", "what has ended is not cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn companies_take_turns_however_many_imports_one_of_them_has() {
    let database = prepared();
    let idle =
        Served::start_with(&database, "idle", &["--imports-at-once", "0", "--imports-per-company", "100"]);
    let file = b"phone\n+351912345678\n";
    let (mut greedy, mut began) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        greedy.push(upload(&idle, 1, CSV, file).await);
    }
    let modest = [upload(&idle, 2, CSV, file).await, upload(&idle, 2, CSV, file).await];
    let late = upload(&idle, 3, CSV, file).await;
    let _working = Served::start_with(&database, "working", &["--imports-at-once", "1"]);
    let of = async |import: &str| {
        let seen = ended(&idle, import).await;
        assert_eq!(seen["state"], "done", "{seen}");
        seen["startedAt"].as_str().unwrap().to_owned()
    };
    for import in &greedy {
        began.push(of(import).await);
    }
    let before = |time: &String| began.iter().filter(|began| *began < time).count();
    for (import, turns) in [(&modest[0], 1), (&late, 1), (&modest[1], 2)] {
        let time = of(import).await;
        assert_eq!(before(&time), turns, "of the greedy one's before it: {time} {began:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_import_makes_room_for_a_short_one() {
    let database = prepared();
    let served = Served::start_with(&database, "a", &["--imports-at-once", "1"]);
    let long = upload(&served, 1, CSV, many(100_000).file.as_bytes()).await;
    let short = upload(&served, 2, CSV, b"phone\n+351912345678\n").await;
    let (short, long) = (ended(&served, &short).await, ended(&served, &long).await);
    assert_eq!((&short["state"], &long["state"]), (&json!("done"), &json!("done")));
    let end = |import: &Value| import["finishedAt"].as_str().unwrap().to_owned();
    assert!(end(&short) < end(&long), "{short} {long}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_is_cancelled_while_it_runs_stops_with_exact_figures() {
    let database = prepared();
    let served = Served::start(&database, "a");
    let case = many(50_000);
    let import = upload(&served, 1, CSV, case.file.as_bytes()).await;
    eventually("rows are written", async || state(&served, &import).await["rows"] != 0).await;
    let cancelled = send(&served, "DELETE", &import, "", b"").await.json();
    assert_eq!(cancelled["state"], "cancelled");
    let rows = cancelled["rows"].as_i64().unwrap();
    assert!((1..50_000).contains(&rows), "{cancelled}");
    eventually("the chunks are gone", async || count(&database, "import_chunks").await == 0).await;
    assert_eq!(state(&served, &import).await["rows"], rows, "nothing was written after it");
    assert_eq!(count(&database, "import_rejects").await, cancelled["rejected"].as_i64().unwrap());
    let written = contacts(&database, 1).await;
    let prefix: Contacts = many(rows).contacts;
    assert!(written == prefix, "not the first {rows} rows: {} contacts", written.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_whose_instance_is_killed_goes_on_elsewhere_and_applies_every_row_once() {
    let database = prepared();
    let a = Served::start(&database, "a");
    let case = many(50_000);
    sql(&database, "update companies set region = 'PT' where id = 1").await;
    let import = upload(&a, 1, CSV, case.file.as_bytes()).await;
    eventually("rows are written", async || state(&a, &import).await["rows"] != 0).await;
    assert_eq!(state(&a, &import).await["instance"], "a");
    drop(a); // SIGKILL
    assert!(count(&database, "import_chunks").await > 0, "it was killed in the middle");
    let b = Served::start(&database, "b");
    check(&database, &b, 1, &import, &case).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_ends_leaves_its_imports_to_others_at_once() {
    let database = prepared();
    let a = Served::start(&database, "a");
    let case = many(50_000);
    sql(&database, "update companies set region = 'PT' where id = 1").await;
    let import = upload(&a, 1, CSV, case.file.as_bytes()).await;
    eventually("rows are written", async || state(&a, &import).await["rows"] != 0).await;
    assert!(tokio::task::spawn_blocking(move || a.end()).await.unwrap());
    let free = "imports where state = 'running' and owner is null and leased_until is null";
    assert_eq!(count(&database, free).await, 1, "it is free before its lease would have ended");
    let b = Served::start(&database, "b");
    check(&database, &b, 1, &import, &case).await;
}

/// Sends half of an upload.
async fn half_an_upload(served: &Served) -> TcpStream {
    let mut stream = TcpStream::connect(&served.address).await.unwrap();
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {CSV}\r\ncontent-length: 2000000\r\n\r\n",
        imports(1)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(many(12_000).file.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_fails_and_leaves_no_contact() {
    let database = prepared();
    let served = Served::start(&database, "a");
    let stream = half_an_upload(&served).await;
    eventually("chunks are stored", async || count(&database, "import_chunks").await >= 2).await;
    let list = send(&served, "GET", &imports(1), "", b"").await.json();
    assert_eq!(list[0]["state"], "uploading", "{list}");
    drop(stream);
    let import = format!("{}/{}", imports(1), list[0]["id"].as_str().unwrap());
    let seen = ended(&served, &import).await;
    assert_eq!((&seen["state"], &seen["problem"]), (&json!("failed"), &json!("the upload broke off")));
    eventually("the chunks are gone", async || count(&database, "import_chunks").await == 0).await;
    assert_eq!(count(&database, "contacts").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_instance_dies_or_that_is_cancelled_ends() {
    let database = prepared();
    let a = Served::start(&database, "a");
    let _dying = half_an_upload(&a).await;
    eventually("chunks are stored", async || count(&database, "import_chunks").await >= 2).await;
    drop(a); // SIGKILL
    let b = Served::start(&database, "b");
    let mut stream = half_an_upload(&b).await;
    eventually("chunks are stored", async || count(&database, "import_chunks").await >= 4).await;
    assert_eq!(send(&b, "POST", &imports(1), CSV, b"phone\n").await.status, 429, "a lease is respected");
    let list = send(&b, "GET", &imports(1), "", b"").await.json();
    let path = |at: usize| format!("{}/{}", imports(1), list[at]["id"].as_str().unwrap());
    send(&b, "DELETE", &path(0), "", b"").await;
    stream.write_all(many(12_000).file.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    ends("an answer to the cancelled upload", stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 409");
    // As if its minute were over.
    sql(&database, "update imports set leased_until = now() - interval '1 s' where state = 'uploading'")
        .await;
    let seen = ended(&b, &path(1)).await;
    assert_eq!((&seen["state"], &seen["problem"]), (&json!("failed"), &json!("the upload broke off")));
    eventually("the chunks are gone", async || count(&database, "import_chunks").await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_forgotten_a_week_after_its_end() {
    let database = prepared();
    let served = Served::start(&database, "a");
    let file = format!("phone\n{}", "1\n".repeat(5_000));
    let (old, new) =
        (upload(&served, 1, CSV, file.as_bytes()).await, upload(&served, 2, CSV, b"phone\n1\n").await);
    ended(&served, &old).await;
    ended(&served, &new).await;
    sql(&database, "update imports set finished_at = now() - interval '8 days' where company_id = 1").await;
    // A broken-off upload makes it sweep, as ten seconds do.
    drop(half_an_upload(&served).await);
    eventually("it is forgotten", async || send(&served, "GET", &old, "", b"").await.status == 404).await;
    assert_eq!(count(&database, "import_rejects").await, 1);
    assert_eq!(state(&served, &new).await["rejected"], 1);
}

/// Another instance, with a cache of contacts by company and phone.
async fn reader(database: &Database) -> (Perto, Cache<String, String>) {
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let by_phone = Watch {
        schema: "perto".to_owned(),
        table: "contacts".to_owned(),
        cache: "by_phone_read".to_owned(),
        key: "company_id || ':' || phone".to_owned(),
        columns: Vec::new(),
    };
    watch(&mut connection, &by_phone).await.unwrap();
    let pool = sqlx::PgPool::connect(&database.url).await.unwrap();
    let perto = Perto::builder("reader").postgres(&database.url).build().unwrap();
    let cache = perto.cache("by_phone_read").tables(["contacts"]).loader(move |load: Load<String>| {
        let pool = pool.clone();
        async move {
            let sql = "select company_id || ':' || phone, coalesce(name, '') from contacts \
                       where company_id || ':' || phone = any($1)";
            let rows = query_as::<(String, String)>(sql).bind(load.keys).fetch(&pool).await?;
            Ok::<_, sqlx::Error>(rows.by_key(|contact| contact))
        }
    });
    perto.start().await.unwrap();
    (perto, cache.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn contacts_that_were_read_as_absent_or_old_are_seen_and_others_stay_cached() {
    let database = prepared();
    let case = many(5_000);
    sql(&database, "update companies set region = 'PT' where id = 1").await;
    sql(
        &database,
        "insert into contacts (company_id, phone, name) values (1, '+351910000001', 'Old'), \
         (1, '+12125552368', 'Other'), (2, '+351910000001', 'Theirs')",
    )
    .await;
    let (reading, cache) = reader(&database).await;
    let read = async |key: &str| {
        let read = cache.get(&key.to_owned()).await.unwrap();
        (read.value().map(|name| name.as_str().to_owned()), read.tier)
    };
    let (absent, old) = ("1:+351910000002", "1:+351910000001");
    let (other, theirs) = ("1:+12125552368", "2:+351910000001");
    for (key, name) in [(absent, None), (old, Some("Old")), (other, Some("Other")), (theirs, Some("Theirs"))]
    {
        assert_eq!(read(key).await.0.as_deref(), name);
        assert_eq!(read(key).await.1, Tier::Local, "{key} is cached");
    }
    let mut connection = PgConnection::connect(&database.url).await.unwrap();
    let before: String =
        sqlx::query_scalar("select pg_current_xact_id()::text").fetch_one(&mut connection).await.unwrap();
    let served = Served::start(&database, "a");
    let import = upload(&served, 1, CSV, case.file.as_bytes()).await;
    ended(&served, &import).await;
    eventually("the bound is over", async || {
        read(absent).await.0.as_deref() == Some("Name 2") && read(old).await.0.as_deref() == Some("Name 1")
    })
    .await;
    for (key, name) in [(other, "Other"), (theirs, "Theirs")] {
        assert_eq!(read(key).await, (Some(name.to_owned()), Tier::Local), "{key} stayed");
    }
    let written = async |what: &str| {
        count(&database, &format!("perto.invalidation where {what} and xid >= '{before}'::xid8")).await
    };
    assert!(written("cache = 'by_phone_read' and cardinality(keys) = 400").await > 0);
    assert_eq!(written("keys is null").await, 0, "no cache was cleared");
    reading.shutdown().await;
}
