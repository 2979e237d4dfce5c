//! One value and what is to be judged of it, in as few bytes as it goes: L1 has as many of these as fit.

use std::borrow::Cow;
use std::sync::Arc;

use crate::coherence::buckets::Subject;
use crate::coherence::lease::LeaseView;
use crate::coherence::snapshot::{Rank, Snapshot};
use crate::coherence::token::Token;
use crate::wire::Dependency;

/// One value, or the knowledge that there is none. In this order, what a hit looks at lies beside the count of references.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Entry<V> {
    /// The era in which the load *began*, which a hit compares, and when the entry's own life ends.
    pub(crate) life: LeaseView,
    more: Option<Box<More<V>>>,
    /// Of the stamp. Where no transaction was running there is nothing more to it.
    xmin: u64,
    /// Of the token; 0 where there is none.
    epoch: u64,
    value: Option<V>,
}

/// What many entries lack.
#[derive(Debug)]
struct More<V> {
    /// The entry whose value this one has too, where the value was found to be what it was.
    same_as: Option<Arc<Entry<V>>>,
    stamp: Snapshot,
    /// Of the whole stamp, where what came from L2 is cut.
    rank: Rank,
    judged: bool,
    is_brief: bool,
    made_of: Option<MadeOf>,
}

/// What an entry is made from.
#[derive(Debug)]
pub(crate) struct Made {
    /// The era in which the load *began*.
    pub(crate) era: u64,
    pub(crate) expires_ms: u64,
    pub(crate) stamp: Snapshot,
    /// What a later answer must contain to be no older than this one. `None` where nobody knows what it holds beyond its stamp: it is
    /// a replica's, or computed.
    pub(crate) token: Option<Token>,
    /// Judged by each hit, since no eviction tells of it.
    pub(crate) made_of: Option<MadeOf>,
    /// Else it depends on more than can be judged: it is cached nowhere, and nobody joins it.
    pub(crate) judged: bool,
    /// Whether it ends when it expires, though its cache refreshes ahead of the end.
    pub(crate) is_brief: bool,
}

/// What an entry was made of that may change without its key being evicted.
pub(crate) struct MadeOf {
    /// The entry's own key, where the log may spell it otherwise; and what it depends on.
    pub(crate) subjects: Box<[Subject]>,
    /// What it depends on, by name.
    pub(crate) depends: Box<[Dependency]>,
}

/// What an entry costs beside its key and value: moka's own bookkeeping and ours. `benches/capacity.rs` measures it.
pub(super) const ENTRY_BYTES: u32 = 300;

impl<V> Entry<V> {
    pub(crate) fn new(value: Option<V>, made: Made) -> Self {
        Self::make(value, None, made)
    }

    /// The value of another entry, which was found to be the same under another snapshot.
    pub(crate) fn unmodified(of: &Arc<Self>, made: Made) -> Self {
        // Of the one that holds it: a chain would keep all that there ever were.
        let of = of.more.as_ref().and_then(|more| more.same_as.as_ref()).unwrap_or(of);
        Self::make(None, Some(Arc::clone(of)), made)
    }

    /// The value, or none where the source has no such row.
    #[inline]
    #[expect(clippy::ref_option, reason = "a read dereferences to it")]
    pub(crate) fn value(&self) -> &Option<V> {
        match &self.value {
            value @ Some(_) => value,
            none => self.more.as_ref().and_then(|more| more.same_as.as_ref()).map_or(none, |of| &of.value),
        }
    }

    fn make(value: Option<V>, same_as: Option<Arc<Self>>, made: Made) -> Self {
        let Made { era, expires_ms, stamp, token, made_of, judged, is_brief } = made;
        let rank = token.and_then(Token::rank);
        let xmin = stamp.xmin();
        let plain = stamp == Snapshot::all_below(xmin) && rank.is_none_or(|rank| rank == stamp.rank());
        let more = (!plain || !judged || is_brief || made_of.is_some() || same_as.is_some()).then(|| {
            let rank = rank.unwrap_or_else(|| stamp.rank());
            Box::new(More { same_as, stamp, rank, judged, is_brief, made_of })
        });
        let epoch = token.map_or(0, |token| token.epoch);
        Self { value, life: LeaseView::of(era, expires_ms), xmin, epoch, more }
    }

    pub(crate) fn stamp(&self) -> Cow<'_, Snapshot> {
        match &self.more {
            Some(more) => Cow::Borrowed(&more.stamp),
            None => Cow::Owned(Snapshot::all_below(self.xmin)),
        }
    }

    /// See [`Made::token`].
    pub(crate) fn token(&self) -> Option<Token> {
        let rank = || self.more.as_ref().map_or_else(|| self.stamp().rank(), |more| more.rank);
        (self.epoch != 0).then(|| Token::of_read(self.epoch, rank()))
    }

    /// See [`Made::judged`].
    pub(crate) fn judged(&self) -> bool {
        self.more.as_ref().is_none_or(|more| more.judged)
    }

    /// See [`Made::is_brief`].
    pub(crate) fn is_brief(&self) -> bool {
        self.more.as_ref().is_some_and(|more| more.is_brief)
    }

    /// What each hit judges.
    #[inline]
    pub(crate) fn subjects(&self) -> &[Subject] {
        self.made_of().map_or(&[], |made_of| &made_of.subjects)
    }

    pub(crate) fn depends(&self) -> &[Dependency] {
        self.made_of().map_or(&[], |made_of| &made_of.depends)
    }

    #[inline]
    pub(crate) fn made_of(&self) -> Option<&MadeOf> {
        self.more.as_ref()?.made_of.as_ref()
    }

    /// The weight of an entry whose key's text and value take about so many bytes.
    pub(crate) fn weigh(&self, key_bytes: usize, value_bytes: usize) -> u32 {
        let more = self.more.as_ref().map_or(0, |more| more.bytes());
        let bytes = u32::try_from(key_bytes + value_bytes + more).unwrap_or(u32::MAX);
        bytes.saturating_add(ENTRY_BYTES)
    }
}

impl<V> More<V> {
    fn bytes(&self) -> usize {
        let of = |of: &Arc<Entry<V>>| size_of::<Entry<V>>() + of.more.as_ref().map_or(0, |more| more.bytes());
        size_of::<Self>()
            + self.stamp.heap_bytes()
            + self.made_of.as_ref().map_or(0, MadeOf::bytes)
            + self.same_as.as_ref().map_or(0, of)
    }
}

impl MadeOf {
    /// On the heap.
    fn bytes(&self) -> usize {
        // With the heads that two texts have on the heap.
        let texts: usize = self.depends.iter().map(|on| on.cache.len() + on.key.len() + 32).sum();
        size_of_val(&*self.subjects) + size_of_val(&*self.depends) + texts
    }
}

impl std::fmt::Debug for MadeOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.depends.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stamp: &str, token: Option<Token>, judged: bool) -> Entry<u8> {
        let stamp = Snapshot::parse(stamp).unwrap();
        Entry::new(
            None,
            Made { era: 3, expires_ms: 70, stamp, token, made_of: None, judged, is_brief: false },
        )
    }

    #[test]
    fn an_entry_says_what_it_was_made_from() {
        let rank = |text| Snapshot::parse(text).unwrap().rank();
        for stamp in ["5:5:", "5:9:5,7", "5:6:5"] {
            // Of its own stamp, and of a whole one of which that is the cut.
            for token in
                [None, Some(Token::of_read(8, rank(stamp))), Some(Token::of_read(8, rank("5:20:5,17")))]
            {
                for judged in [true, false] {
                    let entry = entry(stamp, token, judged);
                    assert_eq!(entry.stamp().to_string(), stamp);
                    assert_eq!((entry.token(), entry.judged()), (token, judged));
                    assert_eq!((entry.life.era(), entry.life.deadline_ms()), (3, 70));
                    assert!(entry.made_of().is_none());
                }
            }
        }
    }

    #[test]
    fn a_value_that_is_what_it_was_is_kept_once_however_often_that_is_found() {
        let made = |era, stamp: &str| {
            let stamp = Snapshot::parse(stamp).unwrap();
            Made { era, expires_ms: 70, stamp, token: None, made_of: None, judged: true, is_brief: false }
        };
        let first = Arc::new(Entry::new(Some("long".to_owned()), made(1, "5:5:")));
        let before = first.weigh(1, 4);
        let mut last = Arc::clone(&first);
        for round in 2..9 {
            last = Arc::new(Entry::unmodified(&last, made(round, "9:9:")));
            assert_eq!((last.value().as_deref(), last.life.era()), (Some("long"), round));
            assert_eq!(
                (last.stamp().to_string(), first.stamp().to_string()),
                ("9:9:".to_owned(), "5:5:".to_owned())
            );
            assert_eq!(Arc::strong_count(&first), 2, "its own, and that of the newest");
            assert!(last.weigh(1, 4) > before && last.weigh(1, 4) < before + 300);
        }
    }

    /// Where nothing runs, an entry and its two counts of references are seven words beside the value.
    #[test]
    fn an_entry_is_small() {
        assert!(entry("5:5:", Some(Token::of_read(8, Snapshot::all_below(5).rank())), true).more.is_none());
        assert_eq!(size_of::<Entry<String>>(), size_of::<String>() + 32);
    }
}
