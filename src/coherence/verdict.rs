//! What becomes of a value that a flight brings, from what is known of it by then.
//!
//! Pure, as [`super::rules`]: the cache calls it, and so does the model.

use std::time::Duration;

use super::lease::LeaseView;
use super::snapshot::Snapshot;
use super::token::Token;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseVerdict {
    Fresh,
    /// It contains all that is known here, but the lease ended this long ago.
    Unverified(Duration),
    /// It misses a write that is known here.
    Refused,
}

/// What a lease says at a time, of a value that misses nothing that is known.
pub(crate) fn freshness(held: LeaseView, now_ms: u64) -> LeaseVerdict {
    if held.valid_at(now_ms) {
        LeaseVerdict::Fresh
    } else {
        LeaseVerdict::Unverified(Duration::from_millis(now_ms.saturating_sub(held.deadline_ms())))
    }
}

/// Where a flight got its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FlightSource {
    Remote,
    Primary,
    /// No row at all.
    Computed,
    /// A loader that did not say, or that read a replica.
    Unknown,
    /// Such a loader, asked for the primary, and still behind.
    Behind,
    /// A server that the log was not on when it was last heard of, and there is no lease: a new primary, or an old one.
    Elsewhere,
}

/// A read that began before a flight took off may serve what the primary said or what was computed, whatever is known by the
/// time it lands. One that joined in mid-air may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Boarded {
    BeforeTakeOff,
    InFlight,
}

/// A flight, as one of its readers sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flight {
    pub(crate) from: FlightSource,
    pub(crate) boarded: Boarded,
}

/// What a reader asks for beyond the bound.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Demand {
    /// The write that what is served as fresh must contain.
    pub(crate) of_fresh: Write,
    /// The write that all must contain. Whatever is fresh may contain it for certain; what is stale may not.
    pub(crate) of_stale: Write,
    /// Only what the primary says itself will do.
    pub(crate) source: bool,
}

/// Whether a value contains the write that a reader's token asks for. Transactions of another epoch can't be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Write {
    Contained,
    Missing,
    OfAnotherEpoch,
}

impl Write {
    /// The epoch is the one from before the lease was taken. Taken after, a token of a new epoch could be compared with a value
    /// of the old one: `in_no_interleaving_does_a_token_of_a_new_epoch_find_a_value_of_the_old_one`.
    #[inline]
    pub(crate) fn of(stamp: &Snapshot, token: Option<(Token, u64)>) -> Self {
        match token {
            Some((token, epoch)) if token.epoch != epoch => Self::OfAnotherEpoch,
            Some((token, _)) if !token.mark.is_in(stamp) => Self::Missing,
            _ => Self::Contained,
        }
    }
}

/// What a reader does with what its flight brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Serve it as fresh.
    Fresh,
    /// Serve it, flagged: it misses a write that is known, and the source has no newer one.
    Stale,
    /// Serve it, flagged: the lease ended this long ago.
    Unverified(Duration),
    /// The same, of what was cached before the reader came: the cache's policy decides.
    Cached(Duration),
    /// Begin again.
    ReadAgain,
    /// The primary itself does not have the token's write: an error.
    TokenUntrue,
    /// All that can be read lags behind the token's write: an error.
    TokenAhead,
}

impl Flight {
    /// What the primary said after the read began misses nothing that was visible before it. Nor does what was computed. What
    /// another server says is all there is, where nobody can be asked which one is the primary.
    pub(crate) fn is_first_hand(self) -> bool {
        matches!(self.from, FlightSource::Primary | FlightSource::Computed | FlightSource::Elsewhere)
            && self.boarded == Boarded::BeforeTakeOff
    }

    /// `judged` is fresh for what is first-hand. `same_era` says whether its era still lasts: else it may come from a server
    /// that is no more.
    pub(crate) fn verdict(self, judged: LeaseVerdict, same_era: bool, asked: Demand) -> Verdict {
        let first_hand = self.is_first_hand();
        if !same_era {
            return Verdict::ReadAgain;
        }
        match asked.of_fresh {
            Write::Contained => {}
            // What the primary says now contains the write, if it still exists.
            Write::OfAnotherEpoch if first_hand => {}
            // Whoever has a token got it before this read began.
            _ if first_hand && self.from == FlightSource::Computed => {}
            // Nobody can be asked which server is the primary: that does not make the token untrue.
            _ if self.from == FlightSource::Elsewhere => return Verdict::TokenAhead,
            _ if first_hand => return Verdict::TokenUntrue,
            _ if self.from == FlightSource::Behind => return Verdict::TokenAhead,
            _ => return Verdict::ReadAgain,
        }
        let source = asked.source && (!first_hand || self.from == FlightSource::Elsewhere);
        // What was asked of the primary since the read began, and is not by its own word: that is flagged, whatever is known of it.
        let asked_the_primary = self.boarded == Boarded::BeforeTakeOff
            && matches!(self.from, FlightSource::Behind | FlightSource::Elsewhere);
        match judged {
            _ if source && asked_the_primary => asked.of_stale.stale(),
            LeaseVerdict::Refused if self.from == FlightSource::Behind => asked.of_stale.stale(),
            _ if source => Verdict::ReadAgain,
            LeaseVerdict::Fresh => Verdict::Fresh,
            // What it did not begin itself is what is cached.
            LeaseVerdict::Unverified(since)
                if self.boarded == Boarded::InFlight || self.from == FlightSource::Remote =>
            {
                Verdict::Cached(since)
            }
            LeaseVerdict::Unverified(since) => Verdict::Unverified(since),
            LeaseVerdict::Refused => Verdict::ReadAgain,
        }
    }
}

impl Write {
    fn stale(self) -> Verdict {
        if self == Self::Contained { Verdict::Stale } else { Verdict::TokenAhead }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAPSED: Duration = Duration::from_secs(7);
    const ALL: [FlightSource; 6] = [
        FlightSource::Remote,
        FlightSource::Primary,
        FlightSource::Computed,
        FlightSource::Unknown,
        FlightSource::Behind,
        FlightSource::Elsewhere,
    ];

    const fn before(from: FlightSource) -> Flight {
        Flight { from, boarded: Boarded::BeforeTakeOff }
    }

    const fn in_flight(from: FlightSource) -> Flight {
        Flight { from, boarded: Boarded::InFlight }
    }

    fn flights() -> impl Iterator<Item = Flight> {
        ALL.into_iter().flat_map(|from| [before(from), in_flight(from)])
    }

    const NOTHING: Demand = Demand { of_fresh: Write::Contained, of_stale: Write::Contained, source: false };
    const SOURCE: Demand = Demand { source: true, ..NOTHING };

    #[test]
    fn nothing_of_an_era_that_has_ended_is_served() {
        for flight in flights() {
            for of_fresh in [Write::Contained, Write::Missing, Write::OfAnotherEpoch] {
                let asked = Demand { of_fresh, ..NOTHING };
                assert_eq!(
                    flight.verdict(LeaseVerdict::Fresh, false, asked),
                    Verdict::ReadAgain,
                    "{flight:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_refused_is_served_by_nobody_as_fresh() {
        for flight in flights() {
            let stale = if flight.from == FlightSource::Behind { Verdict::Stale } else { Verdict::ReadAgain };
            assert_eq!(flight.verdict(LeaseVerdict::Refused, true, NOTHING), stale, "{flight:?}");
        }
    }

    #[test]
    fn without_a_lease_the_policy_decides_of_what_was_cached_before_and_all_else_is_flagged() {
        for flight in flights() {
            let cached = flight.boarded == Boarded::InFlight || flight.from == FlightSource::Remote;
            let then = if cached { Verdict::Cached(LAPSED) } else { Verdict::Unverified(LAPSED) };
            assert_eq!(flight.verdict(LeaseVerdict::Unverified(LAPSED), true, NOTHING), then, "{flight:?}");
        }
    }

    #[test]
    fn a_token_is_never_passed_over_but_for_what_began_after_it() {
        let verdict = |flight: Flight, of_fresh| {
            flight.verdict(LeaseVerdict::Fresh, true, Demand { of_fresh, ..NOTHING })
        };
        for flight in flights() {
            let missing = match flight {
                Flight { from: FlightSource::Computed, boarded: Boarded::BeforeTakeOff } => Verdict::Fresh,
                Flight { from: FlightSource::Primary, boarded: Boarded::BeforeTakeOff } => {
                    Verdict::TokenUntrue
                }
                Flight { from: FlightSource::Behind | FlightSource::Elsewhere, .. } => Verdict::TokenAhead,
                _ => Verdict::ReadAgain,
            };
            assert_eq!(verdict(flight, Write::Missing), missing, "{flight:?}");
            let another = if flight.is_first_hand() { Verdict::Fresh } else { missing };
            assert_eq!(verdict(flight, Write::OfAnotherEpoch), another, "{flight:?}");
        }
    }

    #[test]
    fn where_only_the_source_will_do_nothing_else_is_fresh() {
        for flight in flights() {
            let then = match flight {
                // Whosever load it was has asked the primary too.
                Flight {
                    from: FlightSource::Behind | FlightSource::Elsewhere,
                    boarded: Boarded::BeforeTakeOff,
                } => Verdict::Stale,
                _ if flight.is_first_hand() => Verdict::Fresh,
                _ => Verdict::ReadAgain,
            };
            assert_eq!(flight.verdict(LeaseVerdict::Fresh, true, SOURCE), then, "{flight:?}");
        }
    }

    #[test]
    fn what_is_stale_may_lack_a_write_that_a_poll_has_brought_to_all_that_is_fresh() {
        let asked = Demand { of_stale: Write::Missing, ..NOTHING };
        assert_eq!(
            before(FlightSource::Behind).verdict(LeaseVerdict::Refused, true, asked),
            Verdict::TokenAhead
        );
        assert_eq!(in_flight(FlightSource::Behind).verdict(LeaseVerdict::Fresh, true, asked), Verdict::Fresh);
    }

    #[test]
    fn a_token_is_compared_in_its_own_epoch_only() {
        let stamp = Snapshot::all_below(10);
        let write = |epoch, xid| Write::of(&stamp, Some((Token::of_write(epoch, xid), 1)));
        assert_eq!(Write::of(&stamp, None), Write::Contained);
        assert_eq!([write(1, 9), write(1, 10)], [Write::Contained, Write::Missing]);
        assert_eq!([write(2, 9), write(2, 10)], [Write::OfAnotherEpoch; 2]);
    }
}
