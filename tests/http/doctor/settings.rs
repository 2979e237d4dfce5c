//! What the doctor says of settings that come with a role, a database, the server or the URL.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_in_the_way_are_told_of_with_who_brings_them_and_what_takes_them_back() {
    let (_server, url) = migrated_alone().await;
    doctor(&url, "", &[]).await.tells("settings", "ok", "in the way", "");
    for (set, state, says, mend) in [
        (
            "alter role postgres set default_transaction_read_only = on",
            "wrong",
            "default_transaction_read_only is on, by role postgres: every transaction may only read",
            "begin read write; alter role postgres reset default_transaction_read_only; commit;",
        ),
        (
            "alter system set default_transaction_read_only = on",
            "wrong",
            "default_transaction_read_only is on, by the server",
            "alter system set default_transaction_read_only = 'off';\nselect pg_reload_conf();",
        ),
        (
            "alter database postgres set default_transaction_isolation = 'serializable'",
            "warn",
            "default_transaction_isolation is serializable, by database postgres",
            "alter database postgres reset default_transaction_isolation;",
        ),
        (
            "alter role postgres in database postgres set session_replication_role = replica",
            "warn",
            "session_replication_role is replica, by role postgres in database postgres",
            "alter role postgres in database postgres reset session_replication_role;",
        ),
        (
            "alter role all set statement_timeout = '150ms'",
            "warn",
            "statement_timeout is 150 ms, by all roles",
            "alter role all reset statement_timeout;",
        ),
        (
            "alter system set row_security = off",
            "warn",
            "row_security is off, by the server",
            "alter system set row_security = 'on';\nselect pg_reload_conf();",
        ),
        (
            "create role loader; alter role loader set session_replication_role = replica",
            "warn",
            "session_replication_role is not origin for role loader",
            "alter role loader reset session_replication_role;",
        ),
    ] {
        sql(&url, set).await;
        sql(&url, "select pg_reload_conf()").await;
        eventually("it is told of", async || {
            let said = doctor(&url, "", &[]).await;
            let told = said.checks.iter().any(|(check, ..)| check == "settings")
                && !said.mends("settings").is_empty();
            if told {
                said.tells("settings", state, says, mend);
                assert_eq!(said.mends("settings").join("\n"), mend, "that alone");
            }
            told
        })
        .await;
        for line in mend.lines() {
            sql(&url, line).await;
        }
        eventually("it is mended", async || doctor(&url, "", &[]).await.mends("settings").is_empty()).await;
    }
    let by_url = format!("{url}?options[default_transaction_isolation]=serializable");
    let said = doctor(&by_url, "", &[]).await;
    said.tells(
        "settings",
        "warn",
        "by the URL",
        "take options[default_transaction_isolation] out of DATABASE_URL",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_hide_rows_of_the_log_are_told_of() {
    let (_server, url) = migrated_alone().await;
    sql(&url, "create role poor login; grant all on all tables in schema perto to poor").await;
    sql(&url, "alter table perto.invalidation enable row level security").await;
    let as_poor = url.replace("postgres@", "poor@");
    let said = doctor(&as_poor, "", &[]).await;
    said.tells(
        "settings",
        "wrong",
        "which rows of perto.invalidation this role sees",
        "disable row level security",
    );
    for mend in said.mends("settings") {
        run(&url, &mend).await;
    }
    doctor(&as_poor, "", &[]).await.tells("settings", "ok", "", "");
}
