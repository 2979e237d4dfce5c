//! What caches have counted, as numbers that can be added up over instances and taken off again at a reset.

use perto::CacheStats;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::service::Service;
use crate::service::{
    companies, contact_pages, contacts, inbox, keys, messages, overview, tool_results, users, validation,
};

macro_rules! counts {
    ({ $($(#[$help:meta])* $name:ident),* $(,)? }) => {
        /// Since the last reset.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "camelCase", default)]
        pub(crate) struct Counts { $($(#[$help])* #[schema(required = true)] pub(crate) $name: u64),* }

        impl From<CacheStats> for Counts {
            fn from(stats: CacheStats) -> Self {
                Self { $($name: stats.$name),* }
            }
        }

        impl Counts {
            fn plus(self, other: Self) -> Self {
                Self { $($name: self.$name.saturating_add(other.$name)),* }
            }

            pub(crate) fn since(self, then: Self) -> Self {
                Self { $($name: self.$name.saturating_sub(then.$name)),* }
            }
        }
    };
}

perto::cache_counters! { counts! {} }

impl Counts {
    pub(crate) const fn hits(&self) -> u64 {
        self.l1_hits.saturating_add(self.l2_hits)
    }

    pub(crate) const fn reads(&self) -> u64 {
        self.hits().saturating_add(self.load_hits)
    }
}

/// A cache: what it has counted, and what L1 holds of it now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub(crate) struct Tally {
    /// Entries of L1.
    #[schema(required = true)]
    entries: u64,
    /// Bytes of L1.
    #[schema(required = true)]
    bytes: u64,
    #[serde(flatten)]
    pub(crate) counts: Counts,
}

impl Tally {
    fn plus(self, other: Self) -> Self {
        Self {
            entries: self.entries.saturating_add(other.entries),
            bytes: self.bytes.saturating_add(other.bytes),
            counts: self.counts.plus(other.counts),
        }
    }
}

/// Every cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub(crate) struct Tallies {
    #[schema(required = true)]
    pub(crate) message: Tally,
    #[schema(required = true)]
    pub(crate) user: Tally,
    #[schema(required = true)]
    pub(crate) company: Tally,
    /// By id.
    #[schema(required = true)]
    pub(crate) contact: Tally,
    #[schema(required = true)]
    pub(crate) contact_by_phone: Tally,
    #[schema(required = true)]
    pub(crate) validation: Tally,
    #[schema(required = true)]
    pub(crate) tool_result: Tally,
    #[schema(required = true)]
    pub(crate) inbox: Tally,
    #[schema(required = true)]
    pub(crate) contact_page: Tally,
    #[schema(required = true)]
    pub(crate) overview: Tally,
    #[schema(required = true)]
    pub(crate) api_key: Tally,
}

impl Tallies {
    fn at(&mut self, name: &str) -> Option<&mut Tally> {
        Some(match name {
            messages::CACHE => &mut self.message,
            users::CACHE => &mut self.user,
            companies::CACHE => &mut self.company,
            contacts::CACHE => &mut self.contact,
            contacts::CACHE_BY_PHONE => &mut self.contact_by_phone,
            validation::CACHE => &mut self.validation,
            tool_results::CACHE => &mut self.tool_result,
            inbox::CACHE => &mut self.inbox,
            contact_pages::CACHE => &mut self.contact_page,
            overview::CACHE => &mut self.overview,
            keys::CACHE => &mut self.api_key,
            _ => return None,
        })
    }

    /// Since the start of this instance.
    pub(crate) fn now(service: &Service) -> Self {
        let mut tallies = Self::default();
        for cache in service.caches.all() {
            if let Some(tally) = tallies.at(cache.name()) {
                let (entries, bytes) = cache.size();
                *tally = Tally { entries, bytes, counts: cache.stats().into() };
            }
        }
        tallies
    }

    /// By the caches' names.
    pub(crate) fn each(&self) -> [(&'static str, Tally); 11] {
        [
            (messages::CACHE, self.message),
            (users::CACHE, self.user),
            (companies::CACHE, self.company),
            (contacts::CACHE, self.contact),
            (contacts::CACHE_BY_PHONE, self.contact_by_phone),
            (validation::CACHE, self.validation),
            (tool_results::CACHE, self.tool_result),
            (inbox::CACHE, self.inbox),
            (contact_pages::CACHE, self.contact_page),
            (overview::CACHE, self.overview),
            (keys::CACHE, self.api_key),
        ]
    }

    fn with(self, other: Self, combine: impl Fn(Tally, Tally) -> Tally) -> Self {
        Self {
            message: combine(self.message, other.message),
            user: combine(self.user, other.user),
            company: combine(self.company, other.company),
            contact: combine(self.contact, other.contact),
            contact_by_phone: combine(self.contact_by_phone, other.contact_by_phone),
            validation: combine(self.validation, other.validation),
            tool_result: combine(self.tool_result, other.tool_result),
            inbox: combine(self.inbox, other.inbox),
            contact_page: combine(self.contact_page, other.contact_page),
            overview: combine(self.overview, other.overview),
            api_key: combine(self.api_key, other.api_key),
        }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        self.with(other, Tally::plus)
    }

    /// What was counted after `then`; what is held stays as it is.
    pub(crate) fn since(self, then: Self) -> Self {
        self.with(then, |now, then| Tally { counts: now.counts.since(then.counts), ..now })
    }

    pub(crate) fn contacts(&self) -> Tally {
        self.contact.plus(self.contact_by_phone)
    }

    /// All of the product's: API keys are the service's own business.
    pub(crate) fn overall(&self) -> Tally {
        let all = self.each().into_iter().filter(|(name, _)| *name != keys::CACHE);
        all.map(|(_, tally)| tally).fold(Tally::default(), Tally::plus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_takes_off_what_was_counted_and_nothing_of_what_is_held() {
        let tally =
            |hits| Tally { entries: 3, bytes: 9, counts: Counts { l1_hits: hits, ..Counts::default() } };
        let (then, now) = (
            Tallies { user: tally(5), api_key: tally(2), ..Tallies::default() },
            Tallies { user: tally(7), contact: tally(1), api_key: tally(2), ..Tallies::default() },
        );
        let since = now.since(then);
        assert_eq!((since.user, since.contact, since.api_key), (tally(2), tally(1), tally(0)));
        assert_eq!(since.overall().counts.hits(), 3, "keys are not in it");
        assert_eq!(since.plus(since).overall().counts.reads(), 6);
        assert_eq!(then.since(now).user, tally(0), "never below nothing");
    }

    #[test]
    fn rows_of_other_versions_are_read_for_what_they_have() {
        let read: Tallies =
            serde_json::from_str(r#"{"user": {"l1Hits": 4, "bytes": 2, "later": 1}, "other": {}}"#).unwrap();
        assert_eq!((read.user.counts.l1_hits, read.user.bytes, read.company), (4, 2, Tally::default()));
    }
}
