//! Granting what a read asks for beyond the bound, by a poll that all who wait share.

use tokio::time::Instant;

use super::{Cache, Key, Value};
use crate::coherence::lease::LeaseView;
use crate::coherence::token::Token;
use crate::coherence::tokens::Asks;
use crate::error::Error;
use crate::read::{ReadOptions, SoftTimeout, Wish};
use crate::shared::polls::Asked;

enum Waited {
    Polled,
    Told,
    /// For as long as a poll may take, or a load where that is shorter.
    InVain,
    Closed,
}

const fn polled(asks: Asks) -> Option<u64> {
    match asks {
        Asks::Polled(era) => Some(era),
        Asks::Nothing | Asks::Write | Asks::Unknown => None,
    }
}

impl<K: Key, V: Value> Cache<K, V> {
    /// Without what every fresh answer grants: a token whose epoch has ended, or a limit that is no shorter than the bound.
    pub(super) fn wish(&self, options: ReadOptions) -> Wish {
        let shared = &self.0.shared;
        let asks = options.at_least.map(|token| shared.asks(token));
        Wish {
            asked: options.at_least,
            token: options.at_least.filter(|_| asks != Some(Asks::Nothing)),
            polled: asks.and_then(polled),
            within: options.within.filter(|limit| *limit < shared.coherence.bound),
            source: false,
            refreshes: false,
            // Whoever names a bound of their own, however long, wants no answer beyond it.
            soft_timeout: match options.within {
                Some(_) => Some(SoftTimeout::NEVER),
                None => options.stale_after.map(SoftTimeout::of),
            },
            floor: options
                .at_least
                .filter(|_| asks.and_then(polled).is_some())
                .and_then(|token| shared.coherence.floor(token)),
        }
    }

    /// Waits for a poll, where only that grants what a read asks for: one for all who wait. Without a lease there may be no poll:
    /// the source decides then.
    pub(super) async fn settle(&self, keys: &[K], wish: &Wish) -> Result<Wish, Error> {
        if !wish.waits() {
            return Ok(Wish { polled: None, floor: None, ..*wish });
        }
        // Apart from the read, which so is small where it waits for no poll.
        let granted = Box::pin(self.granted(keys, *wish)).await?;
        Ok(Wish { source: granted.source || wish.source, ..granted })
    }

    async fn granted(&self, keys: &[K], mut wish: Wish) -> Result<Wish, Error> {
        let shared = &self.0.shared;
        let until = Instant::now() + shared.settings.poll_timeout.min(self.0.policy.load_timeout);
        let mut too_old = false;
        // Told of meanwhile, a token no longer waits for what may be a long time.
        for _at_most in 0..2 {
            let (held, now_ms) = (shared.coherence.lease.held(), shared.clock.now_ms());
            too_old = wish.within.is_some_and(|limit| !shared.coherence.is_within(held, now_ms, limit));
            let asks = wish.token.map_or(Asks::Nothing, |token| shared.asks(token));
            wish.token = wish.token.filter(|_| asks != Asks::Nothing);
            wish.polled = polled(asks);
            wish.floor =
                wish.token.filter(|_| wish.polled.is_some()).and_then(|token| shared.coherence.floor(token));
            // What is cached may have nothing to do with the write. What is not is loaded, and then it contains the write.
            let cached_without = || keys.iter().any(|key| self.holds_without(key, held, wish.token));
            if !(too_old || asks == Asks::Unknown || asks == Asks::Write && cached_without()) {
                return Ok(Wish { within: None, ..wish });
            }
            if !held.valid_at(now_ms) {
                break;
            }
            // Of a token that nobody can place it is not known whether it was made up.
            let until_told = wish.token.filter(|_| asks == Asks::Unknown && !too_old);
            match self.next_poll(until_told, until).await {
                Waited::Polled => return Ok(Wish { asked: wish.asked, ..self.after_a_poll(wish.token)? }),
                Waited::Told => {}
                Waited::InVain => break,
                Waited::Closed => return Err(Error::Closed),
            }
        }
        Ok(Wish { within: None, source: too_old, ..wish })
    }

    /// Waits for a poll that is sent from now on; or, of a token that may be made up, for its hint.
    async fn next_poll(&self, until_told: Option<Token>, until: Instant) -> Waited {
        let shared = &self.0.shared;
        let why = if until_told.is_some() { Asked::InDoubt } else { Asked::Awaited };
        let told = async {
            match until_told {
                Some(token) => shared.until_told(token).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = shared.closing() => Waited::Closed,
            () = shared.polls.next(why) => Waited::Polled,
            () = told => Waited::Told,
            () = tokio::time::sleep_until(until) => Waited::InVain,
        }
    }

    /// A poll has completed that was sent after the read began.
    fn after_a_poll(&self, token: Option<Token>) -> Result<Wish, Error> {
        let coherence = &self.0.shared.coherence;
        match token {
            // What is fresh from here on has the write, or it was lost.
            Some(token) if !coherence.lease.is_in(token.epoch) => {
                coherence.tokens.ended(token.epoch);
                Ok(Wish { floor: coherence.polled_rank(), ..Wish::NONE })
            }
            Some(token) if coherence.buckets.poll().is_some_and(|poll| !token.mark.is_in(&poll)) => {
                Err(self.ahead())
            }
            // None where a recovery has begun since: the write is looked for in what is served then.
            Some(token) => {
                let polled = coherence.buckets.has_polled(&coherence.lease, token);
                Ok(Wish {
                    token: Some(token),
                    polled,
                    floor: polled.and_then(|_| coherence.floor(token)),
                    ..Wish::NONE
                })
            }
            None => Ok(Wish::NONE),
        }
    }

    /// Whether L1 has a value for the key that does not show whether it contains the write.
    fn holds_without(&self, key: &K, held: LeaseView, token: Option<Token>) -> bool {
        self.0.local.pin().get(key).is_some_and(|slot| {
            self.0.is_live(slot, held) && token.is_some_and(|token| !token.mark.is_in(&slot.entry.stamp()))
        })
    }
}
