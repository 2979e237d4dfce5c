//! Values of many rows: a card with its company's name, the first page of a company's contacts, and how many there are. SQL typed by
//! hand is seen by all three.
//!
//! `DATABASE_URL=postgres://localhost/shop REDIS_URL=redis://localhost cargo run --example many_rows`
#![expect(clippy::print_stdout, reason = "an example shows something")]

use std::time::Duration;

use perto::{Cache, Perto, Topic, postgres};
use sqlx::PgPool;

#[derive(serde::Serialize, serde::Deserialize, sqlx::FromRow)]
struct Card {
    id: i64,
    name: String,
    company_id: i64,
    company: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let database_url = std::env::var("DATABASE_URL")?;
    let pool = PgPool::connect(&database_url).await?;
    sqlx::raw_sql(
        "drop table if exists contacts, companies; create table companies (id bigint primary key, name text not null); \
         create table contacts (id bigint primary key, name text not null, company_id bigint not null references companies); \
         insert into companies values (7, 'Acme'); insert into contacts values (1, 'Bea', 7), (2, 'Cid', 7)",
    )
    .execute(&pool)
    .await?;
    let perto = Perto::builder("crm").postgres(&database_url).redis(&std::env::var("REDIS_URL")?).build()?;

    let companies: Cache<i64, String> = perto
        .cache("company")
        .watch("companies", "id")
        .loader(postgres::by_key(&pool, "select id, name from companies where id = any($1)"))?;
    // The set of each company's contacts. It has no values: lists and counts depend on it.
    let of_company: Topic<i64> =
        perto.topic("contacts_of_company").watch("contacts", "company_id").declare()?;

    // A join depends on the row that was joined, by the key that this load has read.
    let sql = "select t.id, t.name, t.company_id, c.name as company from contacts t join companies c on c.id = t.company_id \
               where t.id = any($1)";
    let load = postgres::by_key_of(&pool, sql, |card: &Card| card.id);
    let cards: Cache<i64, Card> = perto.cache("card").watch("contacts", "id").loader(move |keys| {
        let (loading, companies) = (load(keys), companies.clone());
        async move {
            let on = move |_: &i64, card: Option<&Card>| card.map(|card| companies.key(&card.company_id));
            Ok::<_, sqlx::Error>(loading.await?.depends_on(on))
        }
    })?;

    // A list depends on the set: here the first two by name, of all.
    let sql = "select company_id, (array_agg(name order by name))[:2] from contacts where company_id = any($1) group by 1";
    let (load, set) = (postgres::by_key(&pool, sql), of_company.clone());
    let first: Cache<i64, Vec<String>> = perto.cache("first_contacts").tables([""; 0]).loader(move |keys| {
        let (loading, set) = (load(keys), set.clone());
        async move { Ok::<_, sqlx::Error>(loading.await?.depends_on(move |company, _| [set.key(company)])) }
    })?;

    // So does a count.
    let sql = "select company_id, count(*) from contacts where company_id = any($1) group by 1";
    let (load, set) = (postgres::by_key(&pool, sql), of_company.clone());
    let counts: Cache<i64, i64> = perto.cache("contact_count").tables([""; 0]).loader(move |keys| {
        let (loading, set) = (load(keys), set.clone());
        async move { Ok::<_, sqlx::Error>(loading.await?.depends_on(move |company, _| [set.key(company)])) }
    })?;

    perto.migrate().await?;
    perto.start().await?;
    perto.ready().await?;
    let show = async || {
        let (card, first, count) = (cards.get(&1).await?, first.get(&7).await?, counts.get(&7).await?);
        let card = card.value().ok_or("no card")?;
        println!("{} of {}; {:?} of {:?}", card.name, card.company, first.value(), count.value());
        Ok::<_, Box<dyn std::error::Error>>(())
    };
    show().await?;
    let by_hand =
        "update companies set name = 'Acme Ltd' where id = 7; insert into contacts values (3, 'Ada', 7)";
    sqlx::raw_sql(by_hand).execute(&pool).await?;
    tokio::time::sleep(Duration::from_secs(1)).await; // the bound; usually it is seen after 250 ms
    show().await?;
    perto.shutdown().await;
    Ok(())
}
