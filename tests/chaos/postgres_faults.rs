//! The faults of Postgres.

use std::time::{Duration, Instant};

use anyhow::ensure;
use perto::proxy::Fault as Net;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::time::sleep;

use crate::faults::Caused;
use crate::load::{HOT, ROWS};
use crate::record::{Kind, Record, now_ns};
use crate::stats::{Demand, NEW_EPOCH, POLL_FAILED};
use crate::support::engines::moved_to;
use crate::support::wait::eventually;
use crate::worker::CONNECTIONS;
use crate::world::World;

pub(crate) async fn killed(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    world.postgres.kill();
    sleep(time).await;
    world.postgres.restart().await;
    Ok(Caused::demanding(&[POLL_FAILED, NEW_EPOCH]))
}

pub(crate) async fn promoted(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    world.with_standby().await?;
    let mut connection = world.connect().await?;
    let caught_up = "select count(*) from pg_stat_replication where state = 'streaming' \
       and pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn) < 65536";
    eventually("the standby streams", async || {
        sqlx::query_scalar::<_, i64>(caught_up).fetch_one(&mut connection).await.unwrap() == 1
    })
    .await;
    // What is committed now is lost.
    if let Some((_, link)) = &world.standby {
        link.set(Net::BlackHole);
    }
    sleep(Duration::from_millis(100)).await;
    // This one at least.
    world.write(&mut connection, HOT).await?;
    sleep(Duration::from_millis(200)).await;
    world.postgres.kill();
    sleep(time / 2).await;
    world.promote().await?;
    sleep(time / 2).await;
    Ok(Caused { loses: true, ..Caused::demanding(&[POLL_FAILED, NEW_EPOCH]) })
}

pub(crate) async fn cut(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    net(world, time, Net::Cut, &[POLL_FAILED]).await
}

pub(crate) async fn black_hole(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    net(world, time, Net::BlackHole, &[POLL_FAILED]).await
}

pub(crate) async fn slow(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    // No poll takes long enough to fail: a question of our own shows it.
    net(world, time, Net::Delay(Duration::from_millis(100)), &[]).await
}

pub(crate) async fn very_slow(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    net(world, time, Net::Delay(Duration::from_millis(700)), &[POLL_FAILED]).await
}

async fn net(world: &mut World, time: Duration, fault: Net, demands: &[Demand]) -> anyhow::Result<Caused> {
    let mut caused = Caused::demanding(demands);
    let mut asking = Vec::new();
    if let Net::Delay(_) = fault {
        for worker in &world.workers {
            let there = moved_to(&world.url(), &worker.proxies.postgres.address().to_string());
            asking.push(PgConnection::connect(&there).await?);
        }
    }
    world.set_postgres(fault);
    sleep(time).await;
    if let Net::Delay(delay) = fault {
        for (worker, connection) in world.workers.iter().zip(&mut asking) {
            let began = Instant::now();
            sqlx::raw_sql("select 1").execute(connection).await?;
            let took = began.elapsed();
            caused.expect(took >= 2 * delay, format!("an answer came after {took:.0?}"));
            // Ours is one of them.
            caused.expect(worker.proxies.postgres.connections() > 1, "an instance has no connection");
        }
    }
    world.set_postgres(Net::None);
    Ok(caused)
}

pub(crate) async fn pool_exhausted(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let mut held = Vec::new();
    for worker in &mut world.workers {
        held.push(worker.ask(&format!("hold-pool {}", time.as_millis())).await?);
    }
    sleep(time).await;
    let mut caused = Caused::noting(format!("{} connections held", held.join("+")));
    caused.expect(held.iter().all(|held| *held == CONNECTIONS.to_string()), "connections were left");
    Ok(caused)
}

pub(crate) async fn out_of_connections(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let options: PgConnectOptions = world.url().parse()?;
    let options = options.application_name("chaos");
    let mut first = options.connect().await?;
    let (began, mut taken, mut refused) = (Instant::now(), Vec::new(), 0_u32);
    while began.elapsed() < time {
        let others = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
           where backend_type = 'client backend' and application_name <> 'chaos'";
        sqlx::raw_sql(others).execute(&mut first).await?;
        loop {
            match options.connect().await {
                Ok(connection) => taken.push(connection),
                Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("53300") => break,
                Err(error) => return Err(error.into()),
            }
        }
        refused += 1;
        sleep(Duration::from_millis(100)).await;
    }
    ensure!(refused > 0 && !taken.is_empty(), "there were always connections left");
    let count = taken.len();
    for connection in taken {
        drop(connection.close().await);
    }
    Ok(Caused::noting(format!("{count} connections taken")))
}

/// It holds a row that only it writes, so that no writer waits for it, and its number, which every snapshot lists.
pub(crate) async fn long_transaction(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let mut connection = world.connect().await?;
    let mut tx = connection.begin().await?;
    world.write(&mut tx, HOT).await?;
    sleep(time).await;
    tx.commit().await?;
    if let Some(written) = world.writes.last_mut() {
        written.ended = now_ns();
    }
    Ok(Caused::default())
}

pub(crate) async fn bulk_update(world: &mut World, time: Duration) -> anyhow::Result<Caused> {
    let first = world.values(ROWS);
    let mut connection = world.connect().await?;
    let begun = now_ns();
    let sql = "update rows set version = version + 1, value = $1 + id returning id, version, \
       ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int";
    let rows: Vec<(i64, i64, i32)> =
        sqlx::query_as(sql).bind(first.cast_signed()).fetch_all(&mut connection).await?;
    let ended = now_ns();
    ensure!(rows.len() == ROWS as usize, "only {} rows", rows.len());
    for (id, version, timeline) in rows {
        let record = Record::new(Kind::Committed, u32::try_from(id)?, begun);
        let (version, timeline) = (version.cast_unsigned(), timeline.cast_unsigned());
        world.writes.push(Record { version, value: first + id.cast_unsigned(), timeline, ended, ..record });
    }
    sleep(time).await;
    Ok(Caused::noting(format!("in {:.1} s", Duration::from_nanos(ended - begun).as_secs_f64())))
}
