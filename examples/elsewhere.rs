//! Values that don't come from Postgres: computed, or asked of another service. Whoever changes them says so.
//!
//! `DATABASE_URL=postgres://postgres@localhost/shop REDIS_URL=redis://localhost cargo run --example elsewhere`
#![expect(clippy::print_stdout, reason = "an example shows something")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use perto::{Cache, Load, Loaded, Perto};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // What another service would answer.
    let rates = Arc::new(Mutex::new(HashMap::from([("EUR/BRL".to_owned(), 6.3_f64)])));
    let perto = Perto::builder("rates")
        .postgres(&std::env::var("DATABASE_URL")?)
        .redis(&std::env::var("REDIS_URL")?)
        .build()?;
    let asked = Arc::clone(&rates);
    let cache: Cache<String, f64> = perto
        .cache("rate")
        .tables([""; 0]) // none: it is invalidated by hand
        .loader(move |load: Load<String>| {
            let rates = Arc::clone(&asked);
            async move {
                let rates = rates.lock().expect("nobody panics with it");
                let found = load.keys.into_iter().filter_map(|pair| Some((pair.clone(), *rates.get(&pair)?)));
                Ok::<_, Infallible>(
                    found.fold(Loaded::computed(), |loaded, (pair, rate)| loaded.with(pair, rate)),
                )
            }
        })?;
    perto.migrate().await?;
    perto.start().await?;
    println!("{:?}", cache.get(&"EUR/BRL".to_owned()).await?.value());

    // It changes there. Then every instance is told.
    rates.lock().expect("nobody panics with it").insert("EUR/BRL".to_owned(), 6.4);
    cache.invalidate(&"EUR/BRL".to_owned()).await?;
    println!("{:?}", cache.get(&"EUR/BRL".to_owned()).await?.value());
    perto.shutdown().await;
    Ok(())
}
