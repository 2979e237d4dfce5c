//! What the command says to somebody who has just found it: what is missing, what was done, and what to run.

use perto::postgres::SCHEMA_VERSION;
use perto::{Cache, Perto, postgres};
use serde_json::Value;
use sqlx::PgPool;

use super::*;

const TABLE: &str =
    "create table users (id bigint primary key, name text); insert into users values (7, 'Ada')";

/// A database with a table and no log.
pub(super) async fn bare(name: &str) -> (String, String, PgPool) {
    let (name, url) = fresh(name);
    drop_database(&name).await;
    let server = url.parse::<PgConnectOptions>().unwrap().database("postgres");
    let mut server = server.connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("create database {name}"))).execute(&mut server).await.unwrap();
    let pool = PgPool::connect(&url).await.unwrap();
    sqlx::raw_sql(TABLE).execute(&pool).await.unwrap();
    (name, url, pool)
}

/// Of one check of the doctor: its state, what was found, and how to mend it.
fn doctor(url: &str, check: &str, more: &[&str]) -> (String, String, Vec<String>) {
    let output = perto(url, &[&["doctor", "--json"], more].concat());
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = said["checks"].as_array().unwrap();
    let found = checks.iter().find(|found| found["check"] == check).unwrap();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let mend = found["mend"].as_array().unwrap().iter().map(word).collect();
    (word(&found["state"]), word(&found["found"]), mend)
}

#[tokio::test]
async fn every_command_says_that_the_log_is_not_there_or_is_anothers_and_what_to_run() {
    let (name, url, pool) = bare("bare").await;
    let commands: [&[&str]; 7] = [
        &["switch"],
        &["switch", "user", "l1", "off"],
        &["watch", "users", "--cache", "user"],
        &["watch", "users", "--cache", "user", "--replace"],
        &["watch", "users", "--cache", "user", "--sql"],
        &["watch", "users", "--cache", "user", "--remove"],
        &["inspect", "user", "7"],
    ];
    let each = |says: &str, mend: &str, more: &[&str]| {
        for command in commands {
            let said = refused(&url, &[command, more].concat());
            assert!(said.contains(says) && said.contains(mend), "{command:?}: {said}");
            assert!(said.lines().count() == 1 && !said.contains("rows returned"), "{command:?}: {said}");
        }
        let (state, found, mends) = doctor(&url, "schema", more);
        assert!(state == "wrong" && found.contains(says), "{found}");
        assert_eq!(mends, [mend.trim_matches('`')]);
    };
    let missing = "Perto's tables are not in this database";
    each(missing, "`perto migrate`", &[]);
    each(missing, "`perto migrate --schema other`", &["--schema", "other"]);
    succeed(&url, &["migrate"]);
    for (version, mend) in
        [(SCHEMA_VERSION - 1, "`perto migrate`"), (SCHEMA_VERSION + 1, "use a newer Perto")]
    {
        let sql = format!(
            "create or replace function perto.version() returns integer language sql immutable as 'select {version}'; \
             create or replace function perto.added() returns integer language sql immutable as 'select {version}'"
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&pool).await.unwrap();
        each(&format!("of version {version}, and this Perto needs {SCHEMA_VERSION}"), mend, &[]);
    }
    assert!(refused(&url, &["migrate"]).contains("use a newer Perto"));
    pool.close().await;
    drop_database(&name).await;
}

#[tokio::test]
async fn what_was_done_is_said_and_so_is_that_there_was_nothing_to_do() {
    let (name, url) = fresh("done");
    drop_database(&name).await;
    let made = format!("made Perto's tables in the schema perto, version {SCHEMA_VERSION}\n");
    assert_eq!(succeed(&url, &["migrate"]), format!("made the database {name}\n{made}"));
    let said = succeed(&url, &["migrate"]);
    assert!(said.contains("are there already") && said.ends_with(": nothing to do\n"), "{said}");
    let pool = PgPool::connect(&url).await.unwrap();
    sqlx::raw_sql(TABLE).execute(&pool).await.unwrap();
    let watch = |more: &[&str]| succeed(&url, &[&["watch", "users", "--cache", "user"], more].concat());
    assert_eq!(watch(&[]), "public.users is now watched for cache user, by id\n");
    assert_eq!(watch(&[]), "public.users is watched for cache user already, by id: nothing to do\n");
    let anew = "public.users was watched for cache user, and is now watched anew, by ";
    assert_eq!(watch(&["--key", "name", "--replace"]), format!("{anew}name\n"));
    sqlx::raw_sql("drop trigger \"perto:user:update\" on users").execute(&pool).await.unwrap();
    assert_eq!(watch(&["--key", "name"]), format!("{anew}name\n"));
    assert_eq!(watch(&["--remove"]), "public.users is no longer watched for cache user\n");
    assert_eq!(watch(&["--remove"]), "public.users was not watched for cache user: nothing to do\n");
    sqlx::raw_sql("alter table perto.boot set logged").execute(&pool).await.unwrap();
    assert_eq!(succeed(&url, &["migrate"]), "made Perto's tables in the schema perto unlogged again\n");
    pool.close().await;
    drop_database(&name).await;
}

/// The role is a whole server's: it goes with the test.
#[tokio::test]
async fn a_right_that_is_missing_is_one_fault_and_what_postgres_says_names_no_line_of_its_source() {
    let (name, url, pool) = bare("rights").await;
    succeed(&url, &["migrate"]);
    let role = format!("{name}_role");
    sqlx::raw_sql(AssertSqlSafe(format!("drop role if exists {role}; create role {role} login")))
        .execute(&pool)
        .await
        .unwrap();
    let as_role = url.parse::<PgConnectOptions>().unwrap().username(&role).to_url_lossy().to_string();
    let output = perto(&as_role, &["doctor"]);
    let (said, ended) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(ended.contains("one thing is wrong") && said.matches("WRONG").count() == 1, "{said}{ended}");
    assert!(!said.contains("at line"), "{said}");
    let (_, _, mends) = doctor(&as_role, "rights", &[]);
    let told = refused(&as_role, &["watch", "users", "--cache", "user"]);
    assert_eq!(told, "perto: Postgres refused: permission denied for table watched\n");
    // What it says is enough.
    sqlx::raw_sql(AssertSqlSafe(mends.join(" "))).execute(&pool).await.unwrap();
    succeed(&as_role, &["doctor"]);
    sqlx::raw_sql(AssertSqlSafe(format!("drop owned by {role}; drop role {role}")))
        .execute(&pool)
        .await
        .unwrap();
    pool.close().await;
    drop_database(&name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_takes_the_one_app_that_there_is_and_says_when_a_write_was() {
    let (name, url, pool) = bare("apps").await;
    succeed(&url, &["migrate"]);
    let inspect = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_perto"));
        command.env("DATABASE_URL", &url).env("REDIS_URL", redis_url()).stdin(Stdio::null());
        let output = command.args(["inspect", "user", "7"]).args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    succeed(&url, &["watch", "users", "--cache", "user"]);
    let said = inspect(&[]);
    assert!(said.contains("since an instance last ran") && said.contains("MAY BE SERVED"), "{said}");
    let open = async |app: String| {
        let perto = Perto::builder(&app).postgres(&url).redis(&redis_url()).build().unwrap();
        let load = postgres::by_key(&pool, "select id, name from users where id = any($1)");
        let users: Cache<i64, String> = perto.cache("user").watch("users", "id").loader(load).unwrap();
        perto.start().await.unwrap();
        perto.ready().await.unwrap();
        let began = std::time::Instant::now();
        while !matches!(users.inspect(&7).await.unwrap().remote, perto::InRemote::Value(_)) {
            assert!(began.elapsed() < std::time::Duration::from_secs(30), "it is not in L2");
            users.get(&7).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        perto
    };
    let one = open(format!("{name}_one")).await;
    let said = inspect(&[]);
    assert!(said.contains(&format!("key 7, app {name}_one:")), "{said}");
    assert!(said.contains(" yes ") && !said.contains("tick"), "{said}");
    let two = open(format!("{name}_two")).await;
    let said = inspect(&[]);
    assert!(said.contains(&format!("name one by --app: {name}_one, {name}_two")), "{said}");
    assert!(inspect(&["--app", &format!("{name}_two")]).contains(" yes "), "{said}");
    // An instance looks when it starts, and then each minute.
    sqlx::raw_sql("update users set name = 'Grace'").execute(&pool).await.unwrap();
    let said = inspect(&["--app", "none"]);
    assert!(said.contains(", less than "), "{said}");
    // As the release before calls a value.
    let app = format!("{name}_two");
    let mut redis = redis::Client::open(redis_url()).unwrap().get_connection().unwrap();
    let names: Vec<String> =
        redis::cmd("KEYS").arg(format!("perto:{app}:*:user.1.*:7")).query(&mut redis).unwrap();
    let typed = names.first().unwrap();
    let kind = typed.rsplit(':').nth(1).unwrap();
    let before = typed.replace(&format!(":{kind}:"), ":user.1:");
    redis::cmd("RENAME").arg(typed).arg(&before).exec(&mut redis).unwrap();
    let said = inspect(&["--app", &app, "--value-version", "1", "--json"]);
    assert!(said.contains("\"kind\":\"user.1\"") && !said.contains("\"nothing\""), "{said}");
    // Who may not look knows nothing of it, unless it is named.
    redis::cmd("ACL")
        .arg(&["SETUSER", &name, "on", ">pw", "~*", "&*", "+@all", "-scan"])
        .exec(&mut redis)
        .unwrap();
    let url = redis_url().replacen("redis://", &format!("redis://{name}:pw@"), 1);
    let as_user = |more: &[&str]| inspect(&[&["--app", &app, "--json", "--redis-url", &url], more].concat());
    let said = as_user(&[]);
    assert!(said.contains("\"unknown\"") && said.contains("scan"), "{said}");
    let said = as_user(&["--value-version", &kind["user.".len()..]]);
    assert!(said.contains("\"l2\":{\"is\":\"nothing\"}"), "{said}");
    let said = as_user(&["--value-version", "1"]);
    assert!(said.contains("\"kind\":\"user.1\"") && !said.contains("\"unknown\""), "{said}");
    redis::cmd("ACL").arg(&["DELUSER", &name]).exec(&mut redis).unwrap();
    one.shutdown().await;
    two.shutdown().await;
    pool.close().await;
    drop_database(&name).await;
}
