//! Whether a value that is read back is the value that was written: the proof that L2 wants of each. Here for bincode; `json.rs`
//! has the other.
//!
//! `Deserialize` must ask for exactly what `Serialize` wrote: each number by its type, each struct by the names of its
//! fields. bincode would give it whatever bytes come next. And what was read must write the same again.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use serde::Serialize;
use serde::de::value::U32Deserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

use super::codec::Codec;
use super::flaw::{Flaw, Stopped};
#[cfg(feature = "json")]
use super::json;
use super::tape::{Tape, is_too_deep, kind, same_names};
use super::{MAX_PAYLOAD, decode_payload, encode_payload};

/// More of the decoder's limit than a value's bytes are, it takes at most: 16 for a number of 128 bits that is small.
const MAX_PER_BYTE: usize = 16;

/// The bytes of a value that comes back from them as it is, `most` of them at most. A larger one costs no proof.
///
/// # Errors
/// Why it would not, or might not. Nothing is known then of what bytes of it would be read as.
pub(crate) fn payload<V: Serialize + DeserializeOwned>(
    value: &V,
    codec: Codec,
    most: usize,
) -> Result<Bytes, Flaw> {
    let proven = || match codec {
        Codec::Bincode => proven(value, most),
        #[cfg(feature = "json")]
        Codec::Json => json::proven(value, most),
    };
    // All of it is the application's code: also what drops the value that was read.
    catch_unwind(AssertUnwindSafe(proven)).unwrap_or(Err(Flaw::Panicked))
}

fn proven<V: Serialize + DeserializeOwned>(value: &V, most: usize) -> Result<Bytes, Flaw> {
    if is_too_deep(value) {
        return Err(Flaw::TooDeep);
    }
    let bytes = encode_payload(value);
    if bytes.as_ref().is_some_and(|bytes| bytes.len() > most) {
        return Err(Flaw::TooLarge);
    }
    let tape = Tape::of(value);
    let again = Tape::of(&read::<V>(&tape)?);
    if again.flaw.is_some() || !tape.says_the_same(&again) {
        return Err(Flaw::Differs);
    }
    let bytes = bytes.ok_or(Flaw::TooLarge)?;
    if bytes.len() > MAX_PAYLOAD / MAX_PER_BYTE && decode_payload::<V>(&bytes).is_err() {
        return Err(Flaw::TooLarge);
    }
    Ok(bytes)
}

/// Reads a value from what another of its type wrote.
///
/// # Errors
/// Where something else is asked for.
pub(crate) fn read<V: DeserializeOwned>(tape: &Tape) -> Result<V, Flaw> {
    if let Some(flaw) = tape.flaw {
        return Err(flaw);
    }
    let mut reader = Reader { rest: &tape.calls, names: &tape.names, flaw: None };
    match catch_unwind(AssertUnwindSafe(|| V::deserialize(&mut reader))) {
        Ok(Ok(value)) if reader.flaw.is_none() && reader.rest.is_empty() => Ok(value),
        Ok(_) => Err(reader.flaw.unwrap_or(Flaw::Otherwise)),
        Err(_panic) => Err(Flaw::Panicked),
    }
}

struct Reader<'t> {
    rest: &'t [u8],
    names: &'t [(u64, Vec<&'static str>)],
    flaw: Option<Flaw>,
}

impl<'t> Reader<'t> {
    #[cold]
    fn stop(&mut self, flaw: Flaw) -> Stopped {
        self.flaw.get_or_insert(flaw);
        Stopped
    }

    fn peek(&self) -> u8 {
        self.rest.first().copied().unwrap_or_default()
    }

    fn take(&mut self, bytes: usize) -> Result<&'t [u8], Stopped> {
        match self.rest.split_at_checked(bytes) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(self.stop(Flaw::Otherwise)),
        }
    }

    fn expect(&mut self, kind: u8) -> Result<(), Stopped> {
        match self.take(1)? {
            [found] if *found == kind => Ok(()),
            _ => Err(self.stop(Flaw::Otherwise)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Stopped> {
        self.take(N)?.try_into().map_err(|_other_length| Stopped)
    }

    fn count(&mut self) -> Result<usize, Stopped> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    /// A text, or bytes: bincode writes both alike.
    fn bytes(&mut self) -> Result<&'t [u8], Stopped> {
        match self.peek() {
            kind @ (kind::STR | kind::BYTES) => self.expect(kind)?,
            _ => return Err(self.stop(Flaw::Otherwise)),
        }
        let length = self.count()?;
        self.take(length)
    }

    /// So many parts, and as many more as bincode would give from what follows.
    fn parts<'de, V: Visitor<'de>>(
        &mut self,
        count: usize,
        given: usize,
        flaw: Flaw,
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        let mut parts = Parts { reader: self, left: count, given, flaw };
        let value = visitor.visit_seq(&mut parts)?;
        parts.all_read()?;
        Ok(value)
    }

    fn fields<'de, V: Visitor<'de>>(
        &mut self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        self.expect(kind::STRUCT)?;
        let count = self.count()?;
        let hash = u64::from_le_bytes(self.array()?);
        if !self.written_as(hash, fields) {
            return Err(self.stop(Flaw::Fields { name }));
        }
        self.parts(count, fields.len(), Flaw::Fields { name }, visitor)
    }

    /// Whether the names written are those read, in their order. Those read have the aliases of each beside it.
    fn written_as(&self, hash: u64, fields: &[&str]) -> bool {
        let Some((_, written)) = self.names.iter().find(|(known, _)| *known == hash) else { return false };
        let mut others = fields.iter();
        same_names(written, fields) || written.iter().all(|name| others.any(|field| field == name))
    }
}

/// Parts of a list, a tuple, a struct or a map that have not been read.
struct Parts<'r, 't> {
    reader: &'r mut Reader<'t>,
    left: usize,
    /// Parts that bincode would give, whatever they are.
    given: usize,
    /// What it is when more are asked for than there are, or fewer.
    flaw: Flaw,
}

impl Parts<'_, '_> {
    /// Whether there is one more.
    fn next(&mut self) -> Result<bool, Stopped> {
        if self.given == 0 {
            return Ok(false);
        }
        self.given -= 1;
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(true)
            }
            None => Err(self.reader.stop(self.flaw)),
        }
    }

    fn all_read(&mut self) -> Result<(), Stopped> {
        match self.left {
            0 => Ok(()),
            _ => Err(self.reader.stop(self.flaw)),
        }
    }
}

impl<'de> SeqAccess<'de> for &mut Parts<'_, '_> {
    type Error = Stopped;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Stopped> {
        if self.next()? { seed.deserialize(&mut *self.reader).map(Some) } else { Ok(None) }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

impl<'de> MapAccess<'de> for &mut Parts<'_, '_> {
    type Error = Stopped;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Stopped> {
        if self.next()? { seed.deserialize(&mut *self.reader).map(Some) } else { Ok(None) }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Stopped> {
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ident $kind:ident),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
            self.expect(kind::$kind)?;
            visitor.$visit($type::from_le_bytes(self.array()?))
        })*
    };
}

macro_rules! refused {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stopped> {
            Err(self.stop(Flaw::Asks))
        })*
    };
}

impl<'de> Deserializer<'de> for &mut Reader<'_> {
    type Error = Stopped;

    refused!(deserialize_any deserialize_identifier deserialize_ignored_any);

    numbers! {
        deserialize_i8 visit_i8 i8 I8, deserialize_i16 visit_i16 i16 I16, deserialize_i32 visit_i32 i32 I32,
        deserialize_i64 visit_i64 i64 I64, deserialize_i128 visit_i128 i128 I128,
        deserialize_u8 visit_u8 u8 U8, deserialize_u16 visit_u16 u16 U16, deserialize_u32 visit_u32 u32 U32,
        deserialize_u64 visit_u64 u64 U64, deserialize_u128 visit_u128 u128 U128,
        deserialize_f32 visit_f32 f32 F32, deserialize_f64 visit_f64 f64 F64,
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.expect(kind::BOOL)?;
        let [value] = self.array()?;
        visitor.visit_bool(value != 0)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.expect(kind::CHAR)?;
        let value = char::from_u32(u32::from_le_bytes(self.array()?));
        visitor.visit_char(value.ok_or_else(|| self.stop(Flaw::Otherwise))?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.deserialize_string(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        match String::from_utf8(self.bytes()?.to_vec()) {
            Ok(text) => visitor.visit_string(text),
            Err(_no_text) => Err(self.stop(Flaw::Otherwise)),
        }
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.deserialize_byte_buf(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        visitor.visit_byte_buf(self.bytes()?.to_vec())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        if self.peek() == kind::NONE {
            self.expect(kind::NONE)?;
            return visitor.visit_none();
        }
        self.expect(kind::SOME)?;
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.expect(kind::UNIT)?;
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.expect(kind::SEQ)?;
        let count = self.count()?;
        self.parts(count, count, Flaw::Otherwise, visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Stopped> {
        self.expect(kind::TUPLE)?;
        match self.count()? {
            count if count == length => self.parts(count, length, Flaw::Otherwise, visitor),
            _ => Err(self.stop(Flaw::Otherwise)),
        }
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.expect(kind::MAP)?;
        let count = self.count()?;
        let mut parts = Parts { reader: self, left: count, given: count, flaw: Flaw::Otherwise };
        let value = visitor.visit_map(&mut parts)?;
        parts.all_read()?;
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        self.fields(name, fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        self.expect(kind::VARIANT)?;
        visitor.visit_enum(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

/// By its index, as bincode has it. Whether that is the variant of the name shows when it is written again.
impl<'de> EnumAccess<'de> for &mut Reader<'_> {
    type Error = Stopped;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Stopped> {
        let index: U32Deserializer<Stopped> = u32::from_le_bytes(self.array()?).into_deserializer();
        let _hash_of_the_name: [u8; 8] = self.array()?;
        Ok((seed.deserialize(index)?, self))
    }
}

impl<'de> VariantAccess<'de> for &mut Reader<'_> {
    type Error = Stopped;

    fn unit_variant(self) -> Result<(), Stopped> {
        self.expect(kind::UNIT)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Stopped> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Stopped> {
        self.deserialize_tuple(length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        self.fields("a variant", fields, visitor)
    }
}
