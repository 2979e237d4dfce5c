//! Switches on real engines: obeyed everywhere within a second, with Redis and without; kept over restarts; and nothing old is
//! served when a tier goes on again.

use std::time::{Duration, Instant};

use perto::postgres::{self, SCHEMA_VERSION};
use perto::{State, SwitchError, Switching, Tier, TierMode, TroubleKind};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection, PgConnection};

use crate::support::postgres::PrivatePostgres;
use crate::support::redis::PrivateRedis;
use crate::support::wait::eventually;
use crate::world::{Instance, World, coherent};

/// The bar.
const WITHIN: Duration = Duration::from_secs(1);

/// As an operator does, beside all instances.
async fn switch(world: &World, switching: Switching) {
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    postgres::switch(&mut connection, &world.name, &switching).await.unwrap();
}

fn of(tier: Tier, mode: TierMode) -> Switching {
    Switching::of("item", tier, mode)
}

/// Until each of them obeys: how long the slowest has taken.
async fn obeyed(instances: &[&Instance], tier: Tier, mode: TierMode, began: Instant) -> Duration {
    for instance in instances {
        eventually(&format!("{tier} is {mode}"), async || {
            let seen = instance.items.inspect(&1).await.unwrap();
            (if tier == Tier::Local { seen.local_mode } else { seen.remote_mode }) == mode
        })
        .await;
    }
    began.elapsed()
}

/// With the default interval between polls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_instance_obeys_within_a_second_with_redis_and_without() {
    let mut redis = PrivateRedis::start().await;
    let world = World::with_redis(&redis.url()).await;
    let start = || world.start_with(|perto| perto.poll_interval(Duration::from_millis(250)), |cache| cache);
    let (a, b) = (start().await, start().await);
    coherent([&a, &b]).await;
    world.put(1, 1).await;
    for (redis_is, modes) in
        [("alive", [TierMode::Off, TierMode::On]), ("dead", [TierMode::ReadOnly, TierMode::On])]
    {
        if redis_is == "dead" {
            redis.kill();
            a.becomes(State::Isolated).await;
            b.becomes(State::Isolated).await;
        }
        for mode in modes {
            for tier in [Tier::Local, Tier::Remote] {
                let began = Instant::now();
                switch(&world, of(tier, mode)).await;
                let took = obeyed(&[&a, &b], tier, mode, began).await;
                assert!(took < WITHIN, "Redis {redis_is}: {tier} {mode} after {took:?}");
            }
        }
    }
    // By an instance: it obeys when it returns, and tells.
    a.perto.switch(of(Tier::Local, TierMode::Off).because("a test").by("ana")).await.unwrap();
    assert_eq!(a.items.inspect(&1).await.unwrap().local_mode, TierMode::Off);
    eventually("both tell of it", async || {
        [&a, &b].iter().all(|instance| instance.troubles(TroubleKind::Switched).len() == 1)
    })
    .await;
    let detail = &b.troubles(TroubleKind::Switched)[0].detail;
    assert!(detail.contains("l1 is off") && detail.contains("ana") && detail.contains("a test"), "{detail}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_written_by_hand_while_a_tier_was_aside_is_served_old_when_it_goes_on() {
    let world = World::new().await;
    let (a, b) = (world.start().await, world.start().await);
    coherent([&a, &b]).await;
    let both = [Tier::Local, Tier::Remote];
    let cases: [(&[Tier], TierMode); 6] = [
        (&both[..1], TierMode::Off),
        (&both[1..], TierMode::Off),
        (&both, TierMode::Off),
        (&both[..1], TierMode::ReadOnly),
        (&both[1..], TierMode::ReadOnly),
        (&both, TierMode::ReadOnly),
    ];
    let mut v = 1;
    for (at, (tiers, mode)) in cases.into_iter().enumerate() {
        let id = 100 + i64::try_from(at).unwrap();
        world.put(id, v).await;
        a.polled().await;
        b.polled().await;
        // Into both tiers of both.
        assert_eq!(a.fresh(id).await, Some(v));
        eventually("it is in L2", async || {
            matches!(a.items.inspect(&id).await.unwrap().remote, perto::InRemote::Value(_))
        })
        .await;
        assert_eq!(b.fresh(id).await, Some(v));
        for tier in tiers {
            switch(&world, of(*tier, mode)).await;
            obeyed(&[&a, &b], *tier, mode, Instant::now()).await;
        }
        v += 1;
        world.put(id, v).await;
        a.polled().await;
        b.polled().await;
        assert_eq!((a.fresh(id).await, b.fresh(id).await), (Some(v), Some(v)), "{tiers:?} {mode}");
        v += 1;
        // One by an instance, with a hint and tombstones.
        a.put(&world, id, v).await;
        assert_eq!(a.fresh(id).await, Some(v));
        v += 1;
        world.put(id, v).await;
        for tier in tiers {
            switch(&world, of(*tier, TierMode::On)).await;
            obeyed(&[&a, &b], *tier, TierMode::On, Instant::now()).await;
        }
        a.polled().await;
        b.polled().await;
        let late = world.start().await;
        for instance in [&a, &b, &late] {
            assert_eq!(instance.fresh(id).await, Some(v), "{tiers:?} {mode}, on again");
        }
        v += 1;
    }
}

/// Of instances, and of Postgres, by a crash too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_is_there_after_restarts_of_all() {
    let mut server = PrivatePostgres::start().await;
    let world = World::on(&server.url("postgres"), &crate::support::engines::redis_url()).await;
    let a = world.start().await;
    switch(&world, of(Tier::Local, TierMode::Off)).await;
    switch(&world, Switching::of_all(Tier::Remote, TierMode::ReadOnly)).await;
    obeyed(&[&a], Tier::Local, TierMode::Off, Instant::now()).await;
    a.perto.shutdown().await;
    server.kill();
    server.restart().await;
    eventually("Postgres answers", async || PgConnection::connect(&world.database).await.is_ok()).await;
    let b = world.start().await;
    let seen = b.items.inspect(&1).await.unwrap();
    assert_eq!(
        (seen.local_mode, seen.remote_mode),
        (TierMode::Off, TierMode::ReadOnly),
        "before the first read"
    );
    world.put(1, 1).await;
    b.polled().await;
    for _ in 0..2 {
        assert_ne!(b.fresh_from(1).await, (Some(1), Tier::Local));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_that_lasts_for_a_time_ends_by_itself_by_the_clock_of_the_database() {
    let world = World::new().await;
    let a = world.start().await;
    let began = Instant::now();
    switch(&world, of(Tier::Local, TierMode::Off).lasting(Duration::from_secs(2))).await;
    obeyed(&[&a], Tier::Local, TierMode::Off, began).await;
    let until = a.perto.switches()[0].until.unwrap();
    assert!(until > std::time::SystemTime::now());
    let over = obeyed(&[&a], Tier::Local, TierMode::On, began).await;
    assert!(over >= Duration::from_millis(1_900) && over < Duration::from_secs(2) + WITHIN, "{over:?}");
    assert!(a.perto.switches().is_empty());
    eventually("it is no trouble any more", async || a.troubles(TroubleKind::Switched).is_empty()).await;
    // The next one takes it away.
    assert_eq!(world.count("switch").await, 1);
    switch(&world, of(Tier::Remote, TierMode::On)).await;
    assert_eq!(world.count("switch").await, 0);
}

/// By whoever may write the table; and by its owner, who may take its checks away. Polls go on, and what makes sense is obeyed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_make_no_sense_switch_nothing_and_stop_no_poll() {
    let world = World::new().await;
    let a = world.start().await;
    let garbage = [
        "(cache, tier, mode) values ('item', 'l3', 'off')",
        "(cache, tier, mode) values ('item', 'l2', 'OFF')",
        "(cache, tier, mode) values ('', '', '')",
        "(cache, tier, mode, reason) values ('other', 'l1', 'off', repeat('x', 10000000))",
        "(cache, tier, mode, who) values ('other', 'l2', 'off', repeat('x', 1000))",
        "(cache, tier, mode, since, until) values ('always', 'l2', 'off', '-infinity', 'infinity')",
        "(cache, tier, mode, who) values ('bare', 'l1', 'off', null)",
    ];
    for row in garbage {
        let refused =
            sqlx::raw_sql(AssertSqlSafe(format!("insert into switch {row}"))).execute(&world.pool).await;
        assert!(refused.is_err(), "{row}");
    }
    world
        .sql(
            "do $$ declare c text; begin \
               for c in select conname from pg_constraint where conrelid = 'switch'::regclass and contype = 'c' loop \
                 execute format('alter table switch drop constraint %I', c); end loop; end $$; \
             alter table switch alter who drop not null, alter reason drop not null, alter since drop not null",
        )
        .await;
    let sound = [
        "(cache, tier, mode) values ('not a name', 'l1', 'off')",
        "(cache, tier, mode, reason) values ('lines', 'l1', 'off', E'a\\nb\\x1b[31m')",
        "(cache, tier, mode, since, until) values ('far', 'l2', 'off', '4713-01-01 BC', '294276-12-31')",
        "(home, cache, tier, mode) values (gen_random_uuid(), 'item', 'l1', 'off')",
        "(cache, tier, mode, since) values ('timeless', 'l1', 'off', null)",
        "(cache, tier, mode) select 'zz' || n, 'l1', 'off' from generate_series(1, 900) n",
    ];
    for row in garbage.into_iter().chain(sound) {
        world.sql(&format!("insert into switch {row}")).await;
        a.polled().await;
        assert_eq!(a.perto.stats().poll_errors, 0, "{row}");
    }
    world.sql("insert into switch (cache, tier, mode) values ('item', 'l1', 'read-only')").await;
    obeyed(&[&a], Tier::Local, TierMode::ReadOnly, Instant::now()).await;
    let switches = a.perto.switches();
    assert!(switches.iter().all(|switch| !switch.reason.contains(char::is_control)));
    let of_cache =
        |cache: &str| switches.iter().find(|switch| switch.cache.as_deref() == Some(cache)).cloned();
    assert_eq!(of_cache("always").unwrap().until, None);
    assert_eq!(of_cache("far").unwrap().until, None, "later than anybody can show");
    assert!(of_cache("timeless").is_some() && of_cache("bare").is_some());
    assert_eq!(of_cache("not a name"), None);
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    assert_eq!(
        postgres::switches(&mut connection, &world.name).await.unwrap(),
        switches,
        "who looks sees the same"
    );
    assert_eq!(a.items.inspect(&1).await.unwrap().remote_mode, TierMode::On);
    assert_eq!(a.troubles(TroubleKind::Switched).len(), 1, "of what is declared here");
    // However many.
    world.sql("insert into switch (cache, tier, mode) select 'many' || n, 'l1', 'off' from generate_series(1, 5000) n").await;
    a.polled().await;
    assert_eq!((a.perto.stats().poll_errors, a.perto.switches().len() <= 1_000), (0, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_switch_is_told_the_grant_and_a_cache_that_is_none_those_that_are() {
    let world = World::new().await;
    let a = world.start().await;
    let unknown = a.perto.switch(Switching::of("itme", Tier::Local, TierMode::Off)).await.unwrap_err();
    assert_eq!(unknown.to_string(), "no cache \"itme\" is declared here; there are: item");
    let role = format!("{}_r", world.name);
    world.sql(&format!("create role {role} login password 'secret'")).await;
    world
        .sql(&format!(
            "grant usage on schema {0} to {role}; grant select, insert, update, delete on boot, invalidation, tick to {role}; \
             grant select on watched, switch, items to {role}",
            world.name
        ))
        .await;
    let as_role = world.database.parse::<PgConnectOptions>().unwrap().username(&role).password("secret");
    let poor = world.start_with(|perto| perto.postgres(as_role.to_url_lossy().as_str()), |cache| cache).await;
    let refused = poor.perto.switch(of(Tier::Local, TierMode::Off)).await.unwrap_err();
    assert!(matches!(refused, SwitchError::Log(_)));
    let grant = format!("grant select, insert, update, delete on {}.switch to {role};", world.name);
    assert!(format!("{refused:?}").contains(&grant), "{refused:?}");
    world.sql(&grant).await;
    poor.perto.switch(of(Tier::Local, TierMode::Off)).await.unwrap();
    obeyed(&[&a, &poor], Tier::Local, TierMode::Off, Instant::now()).await;
    poor.perto.shutdown().await;
    world.sql(&format!("drop owned by {role}; drop role {role}")).await;
}

/// From the version before, with rights of others on the log; and it goes by `migrate` alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_the_version_before_is_upgraded_and_its_readers_may_read_the_switches() {
    let world = World::new().await;
    let role = format!("{}_u", world.name);
    world.sql(&format!("create role {role}; grant select on invalidation to {role}")).await;
    world
        .sql(
            "drop table switch; drop function home(), added(); \
             create or replace function version() returns integer language sql immutable as 'select 6'",
        )
        .await;
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    let refused = postgres::switch(&mut connection, &world.name, &of(Tier::Local, TierMode::Off)).await;
    assert!(refused.unwrap_err().to_string().contains("perto migrate"));
    postgres::migrate(&mut connection, &world.name).await.unwrap();
    let version = postgres::schema_version(&mut connection, &world.name).await.unwrap();
    let version = version.unwrap();
    assert_eq!(
        (version.oldest, version.newest),
        (SCHEMA_VERSION, SCHEMA_VERSION),
        "nobody of the one before that could go on"
    );
    let sql = format!("select has_table_privilege('{role}', '{}.switch', 'select')", world.name);
    let may: bool = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&world.pool).await.unwrap();
    assert!(may);
    let a = world.start().await;
    switch(&world, of(Tier::Local, TierMode::Off)).await;
    obeyed(&[&a], Tier::Local, TierMode::Off, Instant::now()).await;
    world.sql(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_declared_here_can_be_put_on_again_and_who_finds_the_table_locked_is_told_soon() {
    let world = World::new().await;
    let a = world.start().await;
    switch(&world, Switching::of("gone", Tier::Remote, TierMode::Off)).await;
    a.polled().await;
    assert_eq!(a.perto.switches().len(), 1);
    a.perto.switch(Switching::of("gone", Tier::Remote, TierMode::On)).await.unwrap();
    assert!(a.perto.switches().is_empty());
    let mut tx = world.pool.begin().await.unwrap();
    sqlx::raw_sql("lock table switch in access exclusive mode").execute(&mut *tx).await.unwrap();
    let mut connection = PgConnection::connect(&world.database).await.unwrap();
    let began = Instant::now();
    let locked = postgres::switch(&mut connection, &world.name, &of(Tier::Local, TierMode::Off)).await;
    assert!(locked.unwrap_err().to_string().contains("locked for more than 1 s"));
    assert!(began.elapsed() < Duration::from_secs(10));
    tx.rollback().await.unwrap();
    postgres::switch(&mut connection, &world.name, &of(Tier::Local, TierMode::Off)).await.unwrap();
}
