//! What the doctor says of Redis.

use super::*;
use crate::support::cluster::PrivateCluster;
use crate::support::sentinels::{Sentinel, Watched};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_redis_is_told_of_with_the_command_that_mends_it() {
    let (database, redis) = (migrated(), good_redis().await);
    let mut connection = redis.connect().await;
    let url = redis.url();
    let look = async || doctor(&database.url, &url, &[]).await;
    redis.config("maxmemory-policy", "noeviction").await;
    look().await.tells("memory", "warn", "when it is full", "maxmemory-policy allkeys-lru");
    redis.config("maxmemory", "1").await;
    look().await.tells("memory", "wrong", "nothing more is put there", "maxmemory-policy allkeys-lru");
    redis.config("maxmemory", "0").await;
    look().await.tells("memory", "warn", "no maxmemory", "config set maxmemory 1gb");
    redis.config("client-output-buffer-limit", "pubsub 0 0 0").await;
    look().await.tells("buffers", "warn", "may take all memory", "client-output-buffer-limit");
    redis.config("client-output-buffer-limit", "pubsub 1024 1024 60").await;
    look().await.tells("buffers", "warn", "when 1 KiB of hints wait", "client-output-buffer-limit");
    redis.config("save", "3600 1").await;
    redis.config("appendonly", "yes").await;
    let said = look().await;
    said.tells("persistence", "warn", "appendonly and save is on", "config set appendonly no");
    said.tells("persistence", "warn", "safe and useless", "config set save ''");
    ::redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).query_async::<()>(&mut connection).await.unwrap();
    look().await.tells("role", "wrong", "a replica of 127.0.0.1:1", "point REDIS_URL at 127.0.0.1:1");
}

/// A command that changes the server would change it for them too.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_others_use_is_named_and_no_command_is_said_that_would_harm_them() {
    let (database, redis) = (migrated(), good_redis().await);
    let mut connection = redis.connect().await;
    let url = redis.url();
    let place = place_of(&url);
    let look = async || doctor(&database.url, &url, &[]).await;
    redis.config("maxmemory", "0").await;
    redis.config("save", "3600 1").await;
    let said = look().await;
    said.tells("redis", "ok", &format!("{place}, "), "");
    said.tells("memory", "warn", &format!("The setting is for all who use {place}"), "config set");
    let mut own_database = redis.connect().await;
    for (database_of_theirs, has) in [(0, "keys that are not Perto's"), (3, "keys in its database 3")] {
        ::redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await.unwrap();
        ::redis::cmd("SELECT").arg(database_of_theirs).query_async::<()>(&mut own_database).await.unwrap();
        ::redis::cmd("SET").arg("session:1").arg(1).query_async::<()>(&mut own_database).await.unwrap();
        let said = look().await;
        for check in ["memory", "persistence"] {
            let shared = format!("Others use {place} too (it has {has})");
            said.tells(check, "warn", &shared, "point REDIS_URL at a Redis that only Perto uses");
        }
        assert!(!said.text.contains("config set"), "{}", said.text);
    }
}

/// As managed services do.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_forbids_config_is_not_wrong_and_one_that_forbids_scripts_is() {
    let (database, redis) = (migrated(), good_redis().await);
    let mut connection = redis.connect().await;
    for (name, without) in [("careful", "-config"), ("useless", "-evalsha")] {
        let mut user = ::redis::cmd("ACL");
        user.arg("SETUSER").arg(name).arg(&["on", ">s3cret", "~*", "&*", "+@all", without]);
        user.query_async::<()>(&mut connection).await.unwrap();
    }
    let as_user = |name: &str| redis.url().replace("redis://", &format!("redis://{name}:s3cret@"));
    let said = doctor(&database.url, &as_user("careful"), &[]).await;
    said.tells("buffers", "warn", "CONFIG GET client-output-buffer-limit can't be read", "");
    said.tells("persistence", "warn", "can't be read", "");
    said.tells("memory", "ok", "allkeys-lru", "");
    assert!(said.well && !said.text.contains("s3cret"), "{}", said.text);
    let said = doctor(&database.url, &as_user("useless"), &[]).await;
    said.tells("commands", "wrong", "EVALSHA (", "acl setuser");
    let said = doctor(&database.url, &redis.url().replace("redis://", "redis://nobody:s3cret@"), &[]).await;
    said.tells("redis", "wrong", "refuses the user or the password", "");
    assert!(!said.text.contains("s3cret"), "{}", said.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_far_away_is_told_of() {
    let (database, redis) = (migrated(), good_redis().await);
    let proxy = FaultProxy::start(place_of(&redis.url())).await.unwrap();
    let far = format!("redis://{}", proxy.address());
    proxy.set(Fault::Delay(std::time::Duration::from_millis(15)));
    doctor(&database.url, &far, &[]).await.tells("latency", "warn", "that a read waits for L2", "nearer");
    proxy.set(Fault::Delay(std::time::Duration::from_millis(40)));
    doctor(&database.url, &far, &[]).await.tells("latency", "wrong", "L2 is not used", "nearer");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_cluster_is_told_of() {
    let (database, redis) = (migrated(), PrivateRedis::start_cluster_node().await);
    doctor(&database.url, &redis.url(), &[]).await.tells(
        "mode",
        "wrong",
        "a node of a cluster",
        "REDIS_URL=redis+cluster://",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_looked_at_node_by_node() {
    let (database, mut cluster) = (migrated(), PrivateCluster::start().await);
    let url = cluster.url();
    let said = doctor(&database.url, &url, &[]).await;
    for (at, node) in cluster.nodes.iter().enumerate() {
        let check = if at < 3 { "nodes" } else { "replicas" };
        let is = if said.text.contains("Valkey") { "Valkey " } else { "Redis " };
        said.tells(check, "ok", &format!("127.0.0.1:{} ({is}", node.port()), "");
    }
    for (check, found) in [
        ("mode", "a node of a cluster"),
        ("nodes", "all 3 that have slots answer"),
        ("replicas", "all 3 answer"),
        ("commands", "messages arrive"),
        ("scripts", "as they should be"),
    ] {
        said.tells(check, "ok", found, "");
    }
    let gone =
        format!("1 of 3 that have slots can't be reached from here: 127.0.0.1:{}", cluster.nodes[2].port());
    // Nobody is there to take its place.
    cluster.nodes[5].kill();
    cluster.nodes[2].kill();
    doctor(&database.url, &url, &[]).await.tells("nodes", "wrong", &gone, "cluster-announce-ip");
    let alone = good_redis().await;
    let url = alone.url().replace("redis://", "redis+cluster://");
    doctor(&database.url, &url, &[]).await.tells("nodes", "wrong", "does not say which slots", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_are_asked_each_for_the_server_that_is_looked_at() {
    let (database, mut watched) = (migrated(), Watched::start().await);
    let url = watched.url();
    let server = format!("127.0.0.1:{}", watched.servers[0].port());
    let said = doctor(&database.url, &url, &[]).await;
    for (check, found) in [
        ("redis", &format!("{server}, ")[..]),
        ("mode", "a server by itself"),
        ("role", "primary"),
        ("sentinels", &format!("all 3 name {server}")),
        ("commands", "messages arrive"),
        ("scripts", "as they should be"),
    ] {
        said.tells(check, "ok", found, "");
    }
    watched.sentinels[1].kill();
    let said = doctor(&database.url, &url, &[]).await;
    said.tells("sentinels", "warn", "not all say where the server is: 127.0.0.1:", "start it");
    watched.sentinels.iter_mut().for_each(Sentinel::kill);
    doctor(&database.url, &url, &[]).await.tells("redis", "wrong", "does not say where", "");
}

/// A user for Perto alone, who was given too little.
#[tokio::test(flavor = "multi_thread")]
async fn each_right_that_a_user_lacks_is_named_and_the_command_that_gives_it_is_enough() {
    let (database, redis) = (migrated(), good_redis().await);
    let mut connection = redis.connect().await;
    let all = ["on", ">s3cret", "~*", "&*", "+@all"];
    for (without, check, names) in [
        (&["-ping"][..], "redis", "refuses"),
        (&["-get"], "commands", "GET ("),
        (&["-mget"], "commands", "MGET ("),
        (&["-script|load"], "commands", "SCRIPT LOAD ("),
        (&["-evalsha"], "commands", "EVALSHA ("),
        (&["-publish"], "commands", "PUBLISH ("),
        (&["-subscribe"], "commands", "SUBSCRIBE ("),
        (&["resetchannels", "&other:*"], "commands", "PUBLISH ("),
        (&["resetkeys", "~other:*"], "commands", "GET ("),
        (&["-getrange"], "scripts", "nothing is put into L2"),
        (&["-set"], "scripts", "nothing is put into L2"),
        (&["-unlink"], "scripts", "nothing is put into L2"),
    ] {
        let mut user = ::redis::cmd("ACL");
        user.arg("SETUSER").arg("careful").arg("reset").arg(&all).arg(without);
        user.query_async::<()>(&mut connection).await.unwrap();
        let as_user = redis.url().replace("redis://", "redis://careful:s3cret@");
        let said = doctor(&database.url, &as_user, &[]).await;
        said.tells(check, "wrong", names, " +ping +select");
        assert!(!said.text.contains("s3cret"), "{}", said.text);
        run("", &said.mends(check)[0]).await;
        let said = doctor(&database.url, &as_user, &[]).await;
        assert!(said.well, "{without:?}: {:#?}", said.worst());
    }
    // Just what it says, and no more.
    let grant = "acl setuser careful reset on '>s3cret' '~perto:*' '&perto:*' +ping +select +get +getrange +mget +set +unlink +evalsha '+script|load' \
        +publish +subscribe +unsubscribe +info";
    run("", &format!("redis-cli -h 127.0.0.1 -p {} {grant}", redis.url().rsplit(':').next().unwrap())).await;
    let as_user = redis.url().replace("redis://", "redis://careful:s3cret@");
    let said = doctor(&database.url, &as_user, &[]).await;
    assert!(said.well, "{:#?}", said.worst());
    said.tells("clock", "warn", "TIME can't be read", "");
    let left = crate::support::engines::keys(&mut connection, "*doctor*").await.unwrap();
    assert!(left.is_empty(), "it takes away what it put: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_info_everything_else_is_looked_at() {
    let (database, redis) = (migrated(), good_redis().await);
    let mut user = ::redis::cmd("ACL");
    user.arg("SETUSER").arg("careful").arg(&["on", ">s3cret", "~*", "&*", "+@all", "-info"]);
    user.query_async::<()>(&mut redis.connect().await).await.unwrap();
    let as_user = redis.url().replace("redis://", "redis://careful:s3cret@");
    let said = doctor(&database.url, &as_user, &[]).await;
    said.tells("redis", "warn", "INFO can't be read", "acl setuser careful +info");
    for check in ["buffers", "persistence", "commands", "scripts", "latency", "clock"] {
        said.tells(check, "ok", "", "");
    }
    run("", &said.mends("redis")[0]).await;
    doctor(&database.url, &as_user, &[]).await.tells("redis", "ok", "client", "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_takes_no_writes_is_told_of_with_its_word_for_it() {
    let (database, redis) = (migrated(), good_redis().await);
    let look = async || doctor(&database.url, &redis.url(), &[]).await;
    look().await.tells("scripts", "ok", "put, invalidated and discarded", "");
    redis.config("min-replicas-to-write", "1").await;
    let said = look().await;
    said.tells(
        "scripts",
        "wrong",
        "nothing is put into L2: NOREPLICAS, it has too few replicas",
        "min-replicas-to-write 0",
    );
    run("", &said.mends("scripts")[0]).await;
    look().await.tells("scripts", "ok", "", "");

    // It can't save where its folder is gone.
    let mut connection = redis.connect().await;
    redis.config("save", "3600 1").await;
    std::fs::remove_dir_all(redis.log().parent().unwrap()).unwrap();
    ::redis::cmd("BGSAVE").query_async::<()>(&mut connection).await.unwrap();
    eventually("it could not save", async || {
        let info: String =
            ::redis::cmd("INFO").arg("persistence").query_async(&mut connection).await.unwrap();
        info.contains("rdb_last_bgsave_status:err")
    })
    .await;
    let said = look().await;
    said.tells(
        "redis",
        "wrong",
        "it is not used: MISCONF, it can't save what it holds",
        "stop-writes-on-bgsave-error no",
    );
    run("", &said.mends("redis")[0]).await;
    look().await.tells("scripts", "ok", "", "");

    ::redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).query_async::<()>(&mut connection).await.unwrap();
    look().await.tells("scripts", "wrong", "READONLY, it is a replica", "point REDIS_URL at the primary");
    ::redis::cmd("REPLICAOF").arg("NO").arg("ONE").query_async::<()>(&mut connection).await.unwrap();
    redis.config("maxmemory-policy", "noeviction").await;
    redis.config("maxmemory", "1").await;
    let said = look().await;
    said.tells(
        "scripts",
        "wrong",
        "OOM, its memory is full, and it evicts nothing",
        "maxmemory-policy allkeys-lru",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_takes_all_and_does_something_else_is_told_of() {
    let (database, liar) = (migrated(), Liar::start().await);
    for (lie, check, found) in [
        (
            Lie::Deaf,
            "commands",
            "what is published does not reach who has subscribed within 2s: hints are lost",
        ),
        (
            Lie::Alters,
            "scripts",
            "they don't do what they should: the value that was put is not what is read",
        ),
        (Lie::Silent("PING"), "redis", "did not answer within"),
        (Lie::Silent("SUBSCRIBE"), "commands", "no answer in time to SUBSCRIBE"),
    ] {
        liar.tell(lie.clone());
        let said = doctor(&database.url, &liar.url(), &[]).await;
        let mend =
            if lie == Lie::Deaf || lie == Lie::Alters { "point REDIS_URL at the server itself" } else { "" };
        said.tells(check, "wrong", found, mend);
    }
}

/// More than the doctor has memory for.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_sends_without_end_takes_no_memory_of_the_doctor() {
    let (database, liar) = (migrated(), Liar::start().await);
    liar.tell(Lie::Value(Answer::Text(1 << 30)));
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "ulimit -v 900000 && exec \"$0\" doctor --json", env!("CARGO_BIN_EXE_perto-chat")]);
    limited.env("DATABASE_URL", &database.url).env("REDIS_URL", liar.url());
    let output = tokio::task::spawn_blocking(move || limited.output().unwrap()).await.unwrap();
    let said: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert!(said["checks"].is_array(), "{said}");
}
