//! Which codec writes the values of a cache, and what lies in L2 says which one did.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(feature = "json")]
use super::json;
use super::packing::{self, packed, unpacked};
use super::{Payload, Refused, decode_payload};

/// How the values of a cache are written into L2: [`CacheBuilder::codec`](crate::CacheBuilder::codec).
///
/// [`Value`](crate::Value#what-l2-keeps) says of each type which of them brings it back. Every value in L2 says which codec wrote it. A cache
/// of another codec takes it for a miss, and loads. What it loads takes the place only where it is newer, as after a write: instances that differ cost loads,
/// never a wrong value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Codec {
    /// The contents in the order of the fields, without names or types: short and fast. It can't read what has to ask what comes
    /// next.
    #[default]
    Bincode,
    /// JSON, which describes itself: `flatten`, tagged and untagged enums, `skip_serializing_if` and `serde_json::Value` come back. It takes
    /// up to half as much room again as bincode, and two to three times the time.
    ///
    /// What `skip_serializing_if` skips is read as the default, so it must skip that alone. Where a type is tagged, untagged or flattened, Serde
    /// does not tell what is in it: a change there needs a new [`version`](crate::CacheBuilder::version).
    #[cfg(feature = "json")]
    #[cfg_attr(docsrs, doc(cfg(feature = "json")))]
    Json,
}

const BINCODE: u8 = 0;
const JSON: u8 = 1;

impl Codec {
    /// As the header has it.
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Bincode => BINCODE,
            #[cfg(feature = "json")]
            Self::Json => JSON,
        }
    }

    /// What goes into L2 of a value that was proven to come back from these bytes. More than `above` of them are compressed.
    pub(crate) fn payload(self, bytes: Bytes, above: usize) -> Payload {
        let (packing, bytes) = packed(bytes, above);
        Payload { codec: self.byte(), packing, bytes }
    }

    /// The value of a payload from L2, of `most` bytes at most before it was compressed.
    ///
    /// # Errors
    /// [`Refused::Foreign`] where another codec wrote it, or it is compressed otherwise than this build can.
    pub(crate) fn value<V: DeserializeOwned>(self, payload: &Payload, most: usize) -> Result<V, Refused> {
        if payload.codec != self.byte() {
            return Err(Refused::Foreign);
        }
        match unpacked(payload.packing, &payload.bytes, most)? {
            Some(bytes) => self.decode(&bytes),
            None => self.decode(&payload.bytes),
        }
    }

    /// What types are told that write themselves otherwise for people.
    pub(crate) const fn is_human_readable(self) -> bool {
        match self {
            Self::Bincode => false,
            #[cfg(feature = "json")]
            Self::Json => true,
        }
    }

    /// What a value can be read from once more, where that is not its tape: bincode reads no more than what a tape gives.
    pub(crate) fn text<V: Serialize>(self, value: &V) -> Option<Bytes> {
        match self {
            Self::Bincode => {
                let _has_no_text = value;
                None
            }
            #[cfg(feature = "json")]
            Self::Json => json::encode(value),
        }
    }

    pub(crate) fn decode<V: DeserializeOwned>(self, bytes: &[u8]) -> Result<V, Refused> {
        match self {
            Self::Bincode => decode_payload(bytes),
            #[cfg(feature = "json")]
            Self::Json => json::decode(bytes),
        }
    }
}

impl Payload {
    /// The name of the codec that wrote it, for people; and whether it is compressed.
    pub(crate) const fn described(&self) -> (&'static str, bool) {
        let codec = match self.codec {
            BINCODE => "bincode",
            JSON => "json",
            _ => "unknown",
        };
        (codec, self.packing != packing::NONE)
    }
}
