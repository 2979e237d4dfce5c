//! Keys of several columns, and keys of an enum: whatever has a text that the trigger can write.
//!
//! `DATABASE_URL=postgres://postgres@localhost/shop REDIS_URL=redis://localhost cargo run --example keys`
#![expect(clippy::print_stdout, reason = "an example shows something")]

use std::fmt;
use std::str::FromStr;

use perto::{Cache, Load, Perto, postgres};
use sqlx::PgPool;

/// Two columns. Its text is what the key expression below makes of a row.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    tenant: i64,
    currency: Currency,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Currency {
    Brl,
    Eur,
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Brl => "BRL",
            Self::Eur => "EUR",
        })
    }
}

impl FromStr for Currency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "BRL" => Ok(Self::Brl),
            "EUR" => Ok(Self::Eur),
            _ => Err(format!("{text} is no currency")),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.tenant, self.currency)
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (tenant, currency) = text.split_once(':').ok_or("no colon")?;
        let tenant = tenant.parse().map_err(|error| format!("{tenant}: {error}"))?;
        Ok(Self { tenant, currency: currency.parse()? })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let database_url = std::env::var("DATABASE_URL")?;
    let pool = PgPool::connect(&database_url).await?;
    sqlx::raw_sql(
        "create table if not exists balances (tenant bigint, currency text, cents bigint, primary key (tenant, currency)); \
         insert into balances values (1, 'BRL', 500), (1, 'EUR', 900) on conflict do nothing",
    )
    .execute(&pool)
    .await?;
    let perto = Perto::builder("bank").postgres(&database_url).redis(&std::env::var("REDIS_URL")?).build()?;
    let reading = pool.clone();
    let balances: Cache<Place, i64> = perto
        .cache("balance")
        .watch("balances", "tenant || ':' || currency")
        .loader(move |load: Load<Place>| {
            let pool = reading.clone();
            async move {
                let tenants: Vec<i64> = load.keys.iter().map(|place| place.tenant).collect();
                let currencies: Vec<String> = load.keys.iter().map(|place| place.currency.to_string()).collect();
                // The pairs that were asked for, and no others.
                let sql = "select b.tenant, b.currency, b.cents from unnest($1::bigint[], $2::text[]) as asked(t, c) \
                           join balances b on b.tenant = asked.t and b.currency = asked.c";
                let query = postgres::query_as::<(i64, String, i64)>(sql).bind(tenants).bind(currencies);
                let rows = query.fetch(&pool).await?;
                let place = |tenant, currency: &str| Place {
                    tenant,
                    currency: if currency == "BRL" { Currency::Brl } else { Currency::Eur },
                };
                Ok::<_, sqlx::Error>(rows.by_key(|(tenant, currency, cents)| (place(tenant, &currency), cents)))
            }
        })?;
    perto.migrate().await?;
    perto.start().await?;
    let places = [Currency::Brl, Currency::Eur].map(|currency| Place { tenant: 1, currency });
    for (place, read) in places.iter().zip(balances.get_many(&places).await?) {
        println!("{place}: {:?}", read.value());
    }
    perto.shutdown().await;
    Ok(())
}
