//! What the doctor says of standbys, publications and subscriptions.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_into_a_watched_table_is_told_of() {
    let (from, to) = (migrated(), migrated());
    sql(&from.url, "create publication p for table companies").await;
    let (_, name) = from.url.rsplit_once('/').unwrap();
    let place = place_of(&from.url);
    let (host, port) = place.split_once(':').unwrap_or((&place, "5432"));
    // Without a slot: it never runs, but it is there.
    let subscribe = format!(
        "create subscription s connection 'host={host} port={port} user=postgres dbname={name} password=s3cret' publication p \
         with (create_slot = false, enabled = false, copy_data = false, slot_name = none)"
    );
    sql(&to.url, &subscribe).await;
    let said = doctor(&to.url, "", &[]).await;
    sql(&to.url, "drop subscription s").await;
    for mend in ["drop subscription s;", "truncate perto.boot;", "alter subscription s refresh publication;"]
    {
        said.tells("subscriptions", "wrong", "the subscription s writes into public.companies", mend);
    }
    assert!(!said.text.contains("s3cret"), "{}", said.text);
}

/// As after a move by logical replication, which brings rows and no sequences.
#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_is_behind_its_table_is_told_of() {
    let database = migrated();
    sql(&database.url, "insert into companies (id, name, region) values (7, 'x', 'BR')").await;
    let said = doctor(&database.url, "", &[]).await;
    said.tells("sequences", "wrong", "public.companies.id", "select setval('companies_id_seq',");
    for mend in said.mends("sequences") {
        run(&database.url, &mend).await;
    }
    doctor(&database.url, "", &[]).await.tells("sequences", "ok", "is behind its table", "");
    sql(&database.url, "insert into companies (name, region) values ('y', 'BR')").await;
    // The next number is that which is said, and no last one is known.
    for sets in
        ["alter sequence companies_id_seq restart with 9", "select setval('companies_id_seq', 9, false)"]
    {
        sql(&database.url, sets).await;
        doctor(&database.url, "", &[]).await.tells("sequences", "ok", "is behind its table", "");
    }
    sql(&database.url, "alter sequence companies_id_seq restart with 8").await;
    doctor(&database.url, "", &[]).await.tells(
        "sequences",
        "wrong",
        "public.companies.id",
        "select setval('companies_id_seq',",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_no_primary_and_a_replica_must_be_one_of_this_cluster() {
    let primary = PrivatePostgres::start().await;
    let url = primary.url("postgres");
    succeed(perto(&url, "").arg("migrate"));
    let (standby, stranger) = (primary.standby().await, Database::new());
    let at = standby.url("postgres");
    eventually("the standby has what the primary has", async || {
        doctor(&url, "", &["--replica", &at])
            .await
            .checks
            .iter()
            .any(|(check, state, ..)| check == "replica" && state == "ok")
    })
    .await;
    let said = doctor(&at, "", &[]).await;
    said.tells(
        "primary",
        "wrong",
        "a standby",
        &format!("point DATABASE_URL at the primary, 127.0.0.1:{}", primary.port),
    );
    said.tells("schema", "ok", "", "");
    doctor(&url, "", &["--replica", &url]).await.tells("replica", "wrong", "not in recovery", "");
    succeed(perto(&stranger.url, "").arg("migrate"));
    doctor(&stranger.url, "", &["--replica", &at]).await.tells("replica", "wrong", "of another cluster", "");
    sql(&at, "select pg_wal_replay_pause()").await;
    sql(&url, "update companies set name = name; create table filler as select generate_series(1, 10000)")
        .await;
    eventually("the standby lags", async || {
        let said = doctor(&url, "", &["--replica", &at]).await;
        said.checks.iter().any(|(check, state, found, mend)| {
            check == "replica"
                && state == "warn"
                && found.contains("to replay")
                && mend.contains("pg_wal_replay_resume")
        })
    })
    .await;
    // It goes on, an hour late, and has replayed no transaction since its start.
    for setting in [
        "alter system set recovery_min_apply_delay = '1h'",
        "select pg_reload_conf()",
        "select pg_wal_replay_resume()",
    ] {
        sql(&at, setting).await;
    }
    sql(&url, "update companies set name = name; create table more as select generate_series(1, 10000)")
        .await;
    eventually("the standby is told to be late", async || {
        let said = doctor(&url, "", &["--replica", &at]).await;
        said.checks.iter().any(|(check, state, found, mend)| {
            check == "replica"
                && state == "warn"
                && found.contains("an unknown time behind")
                && mend.contains("pg_stat_replication")
        })
    })
    .await;
    // What it has by now is older than a second.
    sql(&at, "alter system set recovery_min_apply_delay = '2s'").await;
    sql(&at, "select pg_reload_conf()").await;
    eventually("the standby is told to be late by a time", async || {
        sql(&url, "create table once (); drop table once").await;
        let said = doctor(&url, "", &["--replica", &at]).await;
        said.checks.iter().any(|(check, state, found, mend)| {
            check == "replica"
                && state == "warn"
                && !found.contains("unknown")
                && mend.contains("pg_stat_replication")
        })
    })
    .await;
}

/// As Debezium makes one: nothing of the log is in it, and nothing of it is in the log's way.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_of_all_tables_is_no_matter_to_the_log() {
    let database = migrated();
    sql(&database.url, "create publication everything for all tables").await;
    let said = doctor(&database.url, "", &[]).await;
    said.tells("publications", "ok", "none carries the log", "");
    let of_postgres = said.worst().into_iter().filter(|(check, ..)| check != "redis").collect::<Vec<_>>();
    assert!(of_postgres.is_empty() && said.well, "{of_postgres:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_that_carries_the_log_is_told_of() {
    let database = migrated();
    sql(&database.url, "create publication everything for all tables").await;
    // Somebody's idea of safety: then it is in that publication, and Postgres refuses what the log needs.
    sql(&database.url, "alter table perto.invalidation set logged; alter table perto.tick set logged").await;
    let said = doctor(&database.url, "", &[]).await;
    said.tells(
        "publications",
        "wrong",
        "the publication everything carries perto.invalidation, without a replica identity",
        "alter table perto.invalidation replica identity full;",
    );
    said.tells("publications", "warn", "perto.tick", "drop publication everything");
    sql(&database.url, "drop publication everything; create publication few for table perto.tick, companies")
        .await;
    let said = doctor(&database.url, "", &[]).await;
    said.tells(
        "publications",
        "warn",
        "few carries perto.tick",
        "alter publication few drop table perto.tick;",
    );
    for mend in said.mends("publications") {
        run(&database.url, &mend).await;
    }
    doctor(&database.url, "", &[]).await.tells("publications", "ok", "none carries the log", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_into_the_log_is_told_of() {
    let (from, to) = (migrated(), migrated());
    for database in [&from, &to] {
        sql(&database.url, "alter table perto.tick set logged").await;
    }
    sql(&from.url, "create publication p for table perto.tick").await;
    let (_, name) = from.url.rsplit_once('/').unwrap();
    let place = place_of(&from.url);
    let (host, port) = place.split_once(':').unwrap_or((&place, "5432"));
    let subscribe = format!(
        "create subscription s connection 'host={host} port={port} user=postgres dbname={name}' publication p \
         with (create_slot = false, enabled = false, copy_data = false, slot_name = none)"
    );
    sql(&to.url, &subscribe).await;
    let said = doctor(&to.url, "", &[]).await;
    sql(&to.url, "drop subscription s").await;
    let mend = "perto-chat migrate # with DATABASE_URL of the publisher";
    said.tells(
        "subscriptions",
        "wrong",
        "the subscription s writes into perto.tick, which is this database's own",
        mend,
    );
}
