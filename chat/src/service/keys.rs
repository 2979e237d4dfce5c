//! API keys: 256 random bits each, of which only a hash is stored; looked up through the cache, so that a key that is
//! revoked is refused everywhere within the bound.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use super::caches::{NotAKey, share_of};
use super::database::Database;
use perto::{Cache, CacheBuilder, Load, Loaded, StartError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sqlx::FromRow;

pub(crate) const CACHE: &str = "api_key";
const PREFIX: &str = "perto_";
/// Hexadecimal digits of 256 bits.
const DIGITS: usize = 64;

pub(crate) type ApiKeys = Cache<KeyHash, ApiKey>;

/// What a key says of who presents it.
#[derive(Debug, Clone, Serialize, Deserialize, FromRow)]
pub(crate) struct ApiKey {
    pub(crate) company_id: i64,
}

/// The SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct KeyHash([u8; 32]);

impl KeyHash {
    pub(crate) fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// In a time that doesn't say where they differ.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash")
    }
}

impl FromStr for KeyHash {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let mut hash = [0; 32];
        if text.len() != DIGITS || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(NotAKey);
        }
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_not_ascii| NotAKey)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_no_digits| NotAKey)?;
        }
        Ok(Self(hash))
    }
}

pub(super) fn cache(
    settings: CacheBuilder<KeyHash, ApiKey>,
    database: Database,
) -> Result<ApiKeys, StartError> {
    settings
        .tables(["api_keys"])
        .groups(|_, key| share_of(key.map(|key| key.company_id)))
        .loader(move |load: Load<KeyHash>| load_keys(database.clone(), load))
}

async fn load_keys(database: Database, load: Load<KeyHash>) -> Result<Loaded<KeyHash, ApiKey>, sqlx::Error> {
    let hashes: Vec<&[u8]> = load.keys.iter().map(KeyHash::bytes).collect();
    let sql =
        "select encode(hash, 'hex'), company_id from api_keys where hash = any($1) and revoked_at is null";
    let rows = database.read::<(String, i64)>(sql).bind(hashes).fetch(&database.pool).await?;
    let found = rows
        .rows
        .into_iter()
        .filter_map(|(hash, company_id)| Some((hash.parse().ok()?, ApiKey { company_id })));
    Ok(found.fold(Loaded::new(rows.stamp), |loaded, (hash, key)| loaded.with(hash, key)))
}

/// Those of some keys that are in use, by what is committed now.
pub(crate) async fn in_use(database: &Database, keys: &[KeyHash]) -> Result<HashSet<KeyHash>, sqlx::Error> {
    let hashes: Vec<&[u8]> = keys.iter().map(KeyHash::bytes).collect();
    let sql = "select encode(hash, 'hex') from api_keys where hash = any($1) and revoked_at is null";
    let rows = database.fetch(database.write::<(String,)>(sql).bind(hashes)).await?;
    Ok(rows.into_iter().filter_map(|(hash,)| hash.parse().ok()).collect())
}

/// The key of an `authorization` header.
pub(crate) fn bearer(header: &str) -> Option<&str> {
    let (scheme, key) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Whether it was made here, as far as can be seen without a look-up.
pub(crate) fn looks_right(key: &str) -> bool {
    key.strip_prefix(PREFIX)
        .is_some_and(|digits| digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// A new key: what its owner gets, once.
///
/// # Errors
/// If the system has no randomness.
pub(crate) fn generate() -> anyhow::Result<String> {
    let mut random = [0; 32];
    getrandom::fill(&mut random)
        .map_err(|error| anyhow::anyhow!("the system gives no randomness: {error}"))?;
    Ok(format!("{PREFIX}{}", KeyHash(random)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_round_trips_and_nothing_else_is_one() {
        let hash = KeyHash::of("perto_x");
        assert!(hash.to_string().parse::<KeyHash>().unwrap().is(&hash));
        for text in ["", "00", &"0".repeat(63), &"G".repeat(64), &"é".repeat(32), &"A".repeat(64)] {
            assert!(text.parse::<KeyHash>().is_err(), "{text}");
        }
    }

    #[test]
    fn keys_are_random_and_look_right() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one, other);
        assert!(looks_right(&one) && bearer(&format!("Bearer {one}")) == Some(&one));
        assert!(!looks_right("perto_") && !looks_right(&one[..one.len() - 1]) && bearer("Bearer").is_none());
    }
}
