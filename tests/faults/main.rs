//! smoke
use perto::{Cache, Freshness, Perto, Tier, postgres};
use sqlx::{Connection, PgPool};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn smoke() {
    let url = "postgres://postgres@127.0.0.1:5432/test";
    let pool = PgPool::connect(url).await.unwrap();
    sqlx::raw_sql("drop schema if exists perto_smoke cascade; create schema perto_smoke; create table perto_smoke.users (id bigint primary key, name text)").execute(&pool).await.unwrap();
    let mut c = sqlx::PgConnection::connect(url).await.unwrap();
    postgres::migrate(&mut c, "perto_smoke").await.unwrap();
    postgres::watch(
        &mut c,
        &postgres::Watch {
            schema: "perto_smoke".into(),
            table: "perto_smoke.users".into(),
            cache: "user".into(),
            key: "id".into(),
        },
    )
    .await
    .unwrap();
    let make = async || {
        let perto = Perto::builder("smoke")
            .schema("perto_smoke")
            .postgres(url)
            .redis("redis://127.0.0.1:6379/0")
            .build()
            .unwrap();
        let p2 = pool.clone();
        let users: Cache<i64, String> = perto
            .cache("user")
            .tables(["perto_smoke.users"])
            .loader(move |load: perto::Load<i64>| {
                let pool = p2.clone();
                async move {
                    postgres::query_as::<(i64, String)>(
                        "select id, name from perto_smoke.users where id = any($1)",
                    )
                    .bind(load.keys)
                    .fetch(&pool)
                    .await
                    .map(|r| r.by_key(|x| x))
                }
            })
            .unwrap();
        perto.start().await.unwrap();
        (perto, users)
    };
    let (a, ua) = make().await;
    let (b, ub) = make().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    println!("{a:?}");
    let r = ua.get(&1).await.unwrap();
    println!("{r:?}");
    let r = ub.get(&1).await.unwrap();
    println!("{r:?}");
    assert_eq!(r.tier, Tier::Remote);
    let p3 = pool.clone();
    let w = {
        let a = a.clone();
        tokio::spawn(async move {
            a.write(&p3, async |tx| {
                sqlx::query("insert into perto_smoke.users values (1,'ada'),(2,'bob')").execute(tx).await
            })
            .await
        })
    }
    .await
    .unwrap()
    .unwrap();
    println!("{w:?}");
    let r = ub.get_with(&1, perto::ReadOptions::at_least(w.token.unwrap())).await.unwrap();
    println!("{r:?}");
    assert_eq!(r.value.as_deref().map(|s| s.as_str()), Some("ada"));
    let r = ua.get_many(&[1, 2, 3]).await.unwrap();
    println!("{r:?}");
    sqlx::query("update perto_smoke.users set name='eve' where id=2").execute(&pool).await.unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let r = ua.get(&2).await.unwrap();
    println!("{r:?}");
    assert_eq!(r.value.as_deref().map(|s| s.as_str()), Some("eve"));
    assert_eq!(r.freshness, Freshness::Fresh);
    println!("{:?}\n{:?}\n{:?}", ua.stats(), a.stats(), b.stats());
    a.shutdown().await;
    b.shutdown().await;
    println!("{} {}", a.tasks(), b.tasks());
}
