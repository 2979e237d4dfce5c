//! `perto-chat healthcheck` and `perto-chat load`.

use std::process::Stdio;

use crate::command::{ADMIN_KEY, Served, perto, seeded, succeed};
use crate::service::request;
use crate::support::wait::eventually;

fn healthcheck(listen: &str) -> (bool, String) {
    let output = perto("", "").args(["healthcheck", "--listen", listen]).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.success(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_well_when_it_is_ready_and_not_when_it_is_gone() {
    let database = seeded();
    let served = Served::start(&database, "a");
    let port = served.address.rsplit_once(':').unwrap().1.to_owned();
    eventually("it is well", async || healthcheck(&served.address).0).await;
    let (well, said) = healthcheck(&format!("0.0.0.0:{port}"));
    assert!(well && said == "coherent\n", "{said}");
    let address = served.address.clone();
    assert!(tokio::task::spawn_blocking(move || served.end()).await.unwrap());
    let (well, said) = healthcheck(&address);
    assert!(!well && said.contains(&address), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn load_is_answered_and_shown_by_tier_and_what_it_wrote_is_there() {
    let database = seeded();
    let served = Served::start_closed(&database, "a");
    let sizes = ["--companies", "20", "--users", "40", "--contacts", "400", "--chats", "400"];
    let url = format!("http://{}", served.address);
    let load = |key: &'static str| {
        let mut load = perto("", "");
        load.args(["load", "--url", &url, "--rate", "200", "--seconds", "2", "--writes", "20"]).args(sizes);
        load.env("PERTO_ADMIN_KEY", key).stderr(Stdio::piped());
        load
    };
    let output = String::from_utf8(succeed(&mut load(ADMIN_KEY)).stdout).unwrap();
    let rows: Vec<Vec<&str>> = output
        .lines()
        .skip(1)
        .map(|line| line.split("  ").filter(|cell| !cell.is_empty()).collect())
        .collect();
    assert_eq!(rows.len(), 5, "{output}");
    let number = |row: &[&str], column: usize| row[column].trim().parse::<u64>().unwrap();
    for row in &rows {
        assert!(number(row, 1) > 0 && number(row, 8) == 0, "{output}");
    }
    for read in &rows[..4] {
        assert_eq!(number(read, 5) + number(read, 6) + number(read, 7), number(read, 1), "{output}");
    }
    // The first chat is asked for most.
    let chat = "/api/v1/chats/00000000-0000-4000-8000-000000000001/messages";
    let page = request(&served, "GET", chat, &format!("authorization: Bearer {ADMIN_KEY}\r\n"), "").await;
    assert!(page.text.contains("written by perto-chat load"), "{}", page.text);
    let refused = load("no key that anybody has, whatever one tries").output().unwrap();
    assert!(!refused.status.success(), "{refused:?}");
}
