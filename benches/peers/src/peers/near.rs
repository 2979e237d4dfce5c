//! Perto, as its README starts it.

use std::sync::Arc;

use anyhow::{Context, Result};
use perto::postgres::Pending;
use perto::{Cache, Load, Perto, Read, State, postgres};
use sqlx::AssertSqlSafe;

use crate::bed::{Page, Row, Source};
use crate::peer::{Peer, Place};

pub struct Near {
    perto: Perto,
    cache: Cache<String, Page>,
    source: Arc<Source>,
}

impl Peer for Near {
    type Answer = Read<Page>;
    type Written = Option<Pending>;

    async fn start(Place { source, redis }: Place) -> Result<Self> {
        let perto =
            Perto::builder("peers").schema(&source.schema).pool(&source.pool).redis(&redis).build()?;
        let (rows, sql) = (Arc::clone(&source), source.sql());
        let cache = perto
            .cache("page")
            .watch(&format!("{}.pages", source.schema), "id")
            .capacity_bytes(256 << 20)
            .loader(move |load: Load<String>| {
                // The auditor's loads are the only ones that must ask the primary here. No reader waits for them.
                let audit = load.primary;
                if !audit {
                    rows.count();
                }
                let (rows, query) = (Arc::clone(&rows), postgres::query_as::<Row>(&sql).bind(load.keys));
                async move {
                    let found = query.fetch(&rows.pool).await?;
                    if !audit {
                        rows.pause().await;
                    }
                    Ok::<_, sqlx::Error>(found.by_key(|row| (row.0.clone(), rows.page(row))))
                }
            })?;
        perto.migrate().await?;
        perto.start().await?;
        while perto.health().state != State::Coherent {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        Ok(Self { perto, cache, source })
    }

    async fn get(&self, key: &String) -> Result<Read<Page>> {
        Ok(self.cache.get(key).await?)
    }

    fn page(answer: &Read<Page>) -> Result<&Page> {
        answer.value().context("there is such a row")
    }

    /// `Perto::write` in pieces, for the moment of the commit.
    async fn update(&self, key: &String) -> Result<Option<Pending>> {
        let mut tx = self.source.pool.begin().await?;
        sqlx::query(AssertSqlSafe(self.source.update_sql())).bind(key).execute(&mut *tx).await?;
        let pending = self.perto.pending(&mut tx).await?;
        tx.commit().await?;
        Ok(pending)
    }

    async fn tell(&self, _: &String, written: Option<Pending>) -> Result<()> {
        self.perto.announce_pending(written.context("the table is watched")?).await;
        Ok(())
    }

    async fn stop(self) {
        self.perto.shutdown().await;
    }
}
