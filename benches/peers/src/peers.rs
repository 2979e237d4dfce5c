//! The peers, each set up as its own documents say.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub mod bare;
pub mod cached;
pub mod hand_rolled;
pub mod hitbox;
pub mod moka;
pub mod multi_tier;
pub mod near;
pub mod quick;
pub mod tracking;

/// Who listens on a channel.
async fn listeners(redis: &str, channel: &str) -> Result<u64> {
    let mut redis = redis::Client::open(redis)?.get_multiplexed_async_connection().await?;
    let numsub = redis::cmd("PUBSUB").arg("NUMSUB").arg(channel).to_owned();
    Ok(numsub.query_async::<(String, u64)>(&mut redis).await?.1)
}

/// Waits for one listener more than there were: for who subscribes in the background and doesn't say when.
async fn one_more(redis: &str, channel: &str, before: u64) -> Result<()> {
    let begun = Instant::now();
    while listeners(redis, channel).await? <= before {
        if begun.elapsed() > Duration::from_secs(5) {
            bail!("nobody subscribes to {channel}");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}
