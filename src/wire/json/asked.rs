//! Reads JSON, and sees which fields are asked for and were not written.
//!
//! `#[serde(skip_serializing)]` with a default is read as that default, and writes nothing that could differ: a password
//! that was loaded, and is none when it is read back. Serde tells a struct's names when it is read, those of aliases among
//! them. So a name that is not there is offered behind the last one. An alias of a field that was there is refused as its
//! double; whoever asks for its value has a field that was not written. What a struct left out itself is known from its tape.
//!
//! The fields of a tuple have no names, so one that was left out shows in the length alone: no tuple is read from fewer.
//!
//! All else is handed on as it is. Where a struct is flattened, or a variant has its tag within, Serde tells no names.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, Expected, IntoDeserializer,
    MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::super::flaw::Flaw;
use super::super::tape::LeftOut;

/// Reads a value. `left_out` are the fields that it left out itself.
pub(super) fn read<V: DeserializeOwned>(json: &[u8], left_out: &[LeftOut]) -> Result<V, Flaw> {
    let mut aliases = Vec::new();
    loop {
        let (offered, flaw, an_enum) = Default::default();
        let watch = Watch { aliases: &aliases, left_out, offered, flaw, an_enum };
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let read = V::deserialize(Watched::new(&mut deserializer, &watch));
        let (flaw, offered) = (watch.flaw.take(), watch.offered.take());
        match (flaw, offered, read.and_then(|value| deserializer.end().map(|()| value))) {
            (Some(flaw), ..) => return Err(flaw),
            // Of a double: it is known now, and there are as many as a type has.
            (None, Some(alias), _) => aliases.push(alias),
            (None, None, Ok(value)) => return Ok(value),
            (None, None, Err(error)) if is_too_deep(&error) => return Err(Flaw::TooDeep),
            (None, None, Err(_its_text_may_hold_the_value)) => return Err(Flaw::Otherwise),
        }
    }
}

fn is_too_deep(error: &serde_json::Error) -> bool {
    error.is_syntax() && error.to_string().starts_with("recursion limit")
}

/// A name of a struct: where the list of its names lies, and which.
type Offered = (usize, &'static str);

struct Watch<'w> {
    /// Names that were refused as doubles.
    aliases: &'w [Offered],
    left_out: &'w [LeftOut],
    offered: Cell<Option<Offered>>,
    flaw: Cell<Option<Flaw>>,
    /// The enum that a field was read as.
    an_enum: Cell<Option<&'static str>>,
}

/// A struct, or a variant with fields, that is being read.
struct Struct {
    name: Cow<'static, str>,
    /// For the flaw.
    called: &'static str,
    fields: &'static [&'static str],
}

/// A tuple that is being read.
#[derive(Clone, Copy)]
struct Tuple {
    /// For the flaw.
    called: &'static str,
    /// Elements that it asks for, and has not been given.
    left: usize,
}

/// Something of Serde's that hands all on.
struct Watched<'w, T> {
    inner: T,
    watch: &'w Watch<'w>,
    of: Option<Struct>,
    tuple: Option<Tuple>,
    /// The variant that is being read.
    variant: Option<String>,
    /// Whether it is a field.
    a_field: bool,
}

impl<'w, T> Watched<'w, T> {
    const fn new(inner: T, watch: &'w Watch<'w>) -> Self {
        Self { inner, watch, of: None, tuple: None, variant: None, a_field: false }
    }

    fn tuple(inner: T, watch: &'w Watch<'w>, called: &'static str, length: usize) -> Self {
        let tuple = Some(Tuple { called, left: length });
        Self { tuple, ..Self::new(inner, watch) }
    }
}

macro_rules! hand_on {
    ($($method:ident($($name:ident: $type:ty),*))*) => {
        $(fn $method<V: Visitor<'de>>(self, $($name: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method($($name,)* Watched::new(visitor, self.watch))
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Watched<'_, D> {
    type Error = D::Error;

    hand_on! {
        deserialize_any() deserialize_bool() deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64()
        deserialize_i128() deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_u128()
        deserialize_f32() deserialize_f64() deserialize_char() deserialize_str() deserialize_string()
        deserialize_bytes() deserialize_byte_buf() deserialize_option() deserialize_unit() deserialize_seq()
        deserialize_map() deserialize_identifier() deserialize_ignored_any()
        deserialize_unit_struct(name: &'static str) deserialize_newtype_struct(name: &'static str)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_tuple(length, Watched::tuple(visitor, self.watch, "a tuple", length))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = Watched::tuple(visitor, self.watch, name, length);
        self.inner.deserialize_tuple_struct(name, length, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        if self.a_field {
            self.watch.an_enum.set(Some(name));
        }
        self.inner.deserialize_enum(name, variants, Watched::new(visitor, self.watch))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let mut visitor = Watched::new(visitor, self.watch);
        visitor.of = Some(Struct { name: Cow::Borrowed(name), called: name, fields });
        self.inner.deserialize_struct(name, fields, visitor)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! visits {
    ($($method:ident $type:ty),* $(,)?) => {
        $(fn $method<E: serde::de::Error>(self, value: $type) -> Result<V::Value, E> {
            self.inner.$method(value)
        })*
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Watched<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visits! {
        visit_bool bool, visit_i8 i8, visit_i16 i16, visit_i32 i32, visit_i64 i64, visit_i128 i128,
        visit_u8 u8, visit_u16 u16, visit_u32 u32, visit_u64 u64, visit_u128 u128, visit_f32 f32, visit_f64 f64,
        visit_char char, visit_str &str, visit_borrowed_str &'de str, visit_string String,
        visit_bytes &[u8], visit_borrowed_bytes &'de [u8], visit_byte_buf Vec<u8>,
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Watched::new(deserializer, self.watch))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Watched::new(deserializer, self.watch))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<V::Value, A::Error> {
        let mut parts = Watched::new(parts, self.watch);
        parts.tuple = self.tuple;
        self.inner.visit_seq(parts)
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<V::Value, A::Error> {
        let Some(of) = self.of else { return self.inner.visit_map(Watched::new(entries, self.watch)) };
        let has_a_tag = of.fields.len() == 2 && has_a_tag(&self.inner);
        self.inner.visit_map(Fields {
            inner: entries,
            watch: self.watch,
            seen: vec![false; of.fields.len()],
            of,
            offered: false,
            has_a_tag,
            is_a_tag: false,
        })
    }

    fn visit_enum<A: EnumAccess<'de>>(self, variant: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(Watched::new(variant, self.watch))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Watched<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        let mut deserializer = Watched::new(deserializer, self.watch);
        deserializer.a_field = self.a_field;
        self.inner.deserialize(deserializer)
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Watched<'_, A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        let element = self.inner.next_element_seed(Watched::new(seed, self.watch))?;
        match (&element, &mut self.tuple) {
            // Its fields have no names: the others have moved up, and a default stands in for the last.
            (None, Some(Tuple { called, left: 1.. })) => {
                self.watch.flaw.set(Some(Flaw::Fields { name: called }));
            }
            (Some(_), Some(tuple)) => tuple.left = tuple.left.saturating_sub(1),
            _ => {}
        }
        Ok(element)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Watched<'_, A> {
    type Error = A::Error;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        self.inner.next_key_seed(Watched::new(seed, self.watch))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.inner.next_value_seed(Watched::new(seed, self.watch))
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

impl<'de, 'w, A: EnumAccess<'de>> EnumAccess<'de> for Watched<'w, A> {
    type Error = A::Error;
    type Variant = Watched<'w, A::Variant>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self::Variant), A::Error> {
        let (name, variant) = self.inner.variant::<String>()?;
        let value = seed.deserialize(name.as_str().into_deserializer())?;
        let mut variant = Watched::new(variant, self.watch);
        variant.variant = Some(name);
        Ok((value, variant))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Watched<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, A::Error> {
        self.inner.newtype_variant_seed(Watched::new(seed, self.watch))
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.inner.tuple_variant(length, Watched::tuple(visitor, self.watch, "a variant", length))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        let mut visitor = Watched::new(visitor, self.watch);
        let name = Cow::Owned(self.variant.unwrap_or_default());
        visitor.of = Some(Struct { name, called: "a variant", fields });
        self.inner.struct_variant(fields, visitor)
    }
}

/// Serde reads such an enum as a struct. What it calls it tells them apart.
fn has_a_tag(visitor: &dyn Expected) -> bool {
    visitor.to_string().starts_with("adjacently tagged enum")
}

/// The fields of a struct, and behind them a name that was not among them, where there is one.
struct Fields<'w, A> {
    inner: A,
    watch: &'w Watch<'w>,
    of: Struct,
    /// Which of the names were there.
    seen: Vec<bool>,
    offered: bool,
    /// Whether it is no struct but an enum, with a `tag` and a `content`.
    has_a_tag: bool,
    /// Whether the tag is there: then the content may be missing.
    is_a_tag: bool,
}

impl<A> Fields<'_, A> {
    fn missing(&self) -> Option<Offered> {
        let Struct { name, fields, .. } = &self.of;
        let of_type = fields.as_ptr() as usize;
        let is_known = |field: &str| {
            self.watch.aliases.contains(&(of_type, field))
                || self.watch.left_out.iter().any(|left| left.name == *name && left.field == field)
        };
        let mut names = fields.iter().zip(&self.seen);
        names.find_map(|(field, seen)| (!seen && !is_known(field)).then_some((of_type, *field)))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Fields<'_, A> {
    type Error = A::Error;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, A::Error> {
        if let Some(name) = self.inner.next_key::<Cow<'de, str>>()? {
            let at = self.of.fields.iter().position(|field| *field == name);
            at.into_iter().for_each(|at| self.seen[at] = true);
            return seed.deserialize(name.as_ref().into_deserializer()).map(Some);
        }
        let offers = !self.offered && !self.is_a_tag;
        let Some(missing) = self.missing().filter(|_| offers) else { return Ok(None) };
        self.offered = true;
        self.watch.offered.set(Some(missing));
        seed.deserialize(missing.1.into_deserializer()).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        if self.offered {
            self.watch.flaw.set(Some(Flaw::Fields { name: self.of.called }));
            return Err(A::Error::custom("a field that was not written"));
        }
        let mut seed = Watched::new(seed, self.watch);
        seed.a_field = true;
        self.watch.an_enum.set(None);
        let value = self.inner.next_value_seed(seed)?;
        // The tag is an enum of the same name as the whole.
        let an_enum = self.watch.an_enum.take();
        self.is_a_tag |= self.has_a_tag && an_enum.is_some_and(|name| name == self.of.name);
        Ok(value)
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}
