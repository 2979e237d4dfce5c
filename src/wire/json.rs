//! Values as JSON, and the proof that one comes back.
//!
//! JSON says what comes next, so `Deserialize` may ask. What it can't say is much: a number that is none, a map by other keys than
//! texts and numbers, nothing within nothing. So the very bytes are read, and what was read must write the same again. A
//! field that is never written would be read as its default and write nothing again: [`asked`] finds it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::flaw::Flaw;
use super::tape::{Tape, is_too_deep};
use super::{MAX_PAYLOAD, Refused};

mod asked;

/// All of the bytes. A type whose `Deserialize` panics is refused too.
pub(super) fn decode<V: DeserializeOwned>(bytes: &[u8]) -> Result<V, Refused> {
    match catch_unwind(AssertUnwindSafe(|| serde_json::from_slice(bytes))) {
        Ok(Ok(value)) => Ok(value),
        _ => Err(Refused::Corrupt),
    }
}

/// The JSON of a value that need not come back from it. `None` where there is none.
pub(super) fn encode<V: Serialize>(value: &V) -> Option<Bytes> {
    match catch_unwind(AssertUnwindSafe(|| serde_json::to_vec(value))) {
        Ok(Ok(bytes)) => Some(Bytes::from(bytes)),
        _ => None,
    }
}

/// The JSON of a value that comes back from it as it is, of `most` bytes at most. A larger one costs no proof.
pub(super) fn proven<V: Serialize + DeserializeOwned>(value: &V, most: usize) -> Result<Bytes, Flaw> {
    if is_too_deep(value) {
        return Err(Flaw::TooDeep);
    }
    let bytes = serde_json::to_vec(value);
    if bytes.as_ref().is_ok_and(|bytes| bytes.len() > most.min(MAX_PAYLOAD)) {
        return Err(Flaw::TooLarge);
    }
    let tape = Tape::of(value);
    match tape.flaw {
        // Names say which fields are there, and brackets where a list ends.
        None | Some(Flaw::LeftOut { .. } | Flaw::NoLength) => {}
        Some(flaw) => return Err(flaw),
    }
    let bytes = bytes.map_err(|_its_text_may_hold_the_value| Flaw::NotJson)?;
    let again = Tape::of(&asked::read::<V>(&bytes, &tape.left_out)?);
    if !again.is_whole() || !tape.says_the_same(&again) || !tape.is_of_the_same_types(&again) {
        return Err(Flaw::Differs);
    }
    Ok(Bytes::from(bytes))
}
