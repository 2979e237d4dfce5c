//! Whether bincode can read a type at all, by what its `Deserialize` asks for: known before there is a value.
//!
//! Made-up values are read: numbers are one, lists are empty, nothing is there that need not be. So what is asked for on
//! the way is asked for each value of the type, whichever it is, but within a variant of an enum. Code by hand may ask after
//! some values only: a type that reads other made-up values is told of when it has to be. A type that takes no such value (one that checks its contents) is not known then. It is told of when the first of its values is proven.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::value::U32Deserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

use super::flaw::{Flaw, Stopped};

/// What types that read a text may want. The last two are for dates.
const TEXTS: [&str; 4] = ["", "1", "2000-01-01", "2000-01-01T00:00:00Z"];
/// As many as a UUID has. Ones don't end a C string.
const BYTES: usize = 16;
/// A type that holds itself in its first variant has no end.
const MAX_DEPTH: usize = 32;
/// Parts that are read of one type at most: one may ask for a tuple without end, or hold itself twice and pass over what fails.
const MAX_PARTS: usize = 10_000;

/// Why no value of the type can come back from bincode. `None` where some may.
pub(crate) fn unreadable<V: DeserializeOwned>() -> Option<Flaw> {
    // A made-up value must not end the program.
    if cfg!(panic = "abort") {
        return None;
    }
    let (flaw, _) = probed::<V>(true, TEXTS.into_iter());
    // Whatever it asked for may have been due to the values.
    flaw.filter(|_| !probed::<V>(false, TEXTS.into_iter().rev()).1)
}

/// What was asked for in vain, and whether a value was read without it: of ones or of noughts, and of the first of the texts that it takes.
fn probed<V: DeserializeOwned>(
    ones: bool,
    texts: impl Iterator<Item = &'static str>,
) -> (Option<Flaw>, bool) {
    let (flaw, left) = (Cell::new(None), Cell::new(MAX_PARTS));
    for text in texts {
        let probe = Probe { ones, text, flaw: &flaw, left: &left, certain: true, depth: 0 };
        // The application's code.
        let read = catch_unwind(AssertUnwindSafe(|| V::deserialize(probe).is_ok()));
        if flaw.get().is_some() || !matches!(read, Ok(false)) {
            return (flaw.get(), flaw.get().is_none() && matches!(read, Ok(true)));
        }
    }
    (None, false)
}

#[derive(Clone, Copy)]
struct Probe<'p> {
    /// What numbers and bytes are.
    ones: bool,
    text: &'static str,
    flaw: &'p Cell<Option<Flaw>>,
    /// Parts that may still be read.
    left: &'p Cell<usize>,
    /// Whether each value of the type has this part.
    certain: bool,
    depth: usize,
}

impl Probe<'_> {
    fn stop(self, flaw: Flaw) -> Stopped {
        // What is asked for after the end says nothing: it may stand for what was not given.
        if self.certain && self.left.get() > 0 {
            self.flaw.set(Some(flaw));
        }
        Stopped
    }

    /// One part more.
    fn go_on(self) -> Result<(), Stopped> {
        let left = self.left.get().saturating_sub(1);
        self.left.set(left);
        if left > 0 { Ok(()) } else { Err(Stopped) }
    }

    fn parts(self, left: usize) -> Result<Parts<Self>, Stopped> {
        self.go_on()?;
        let inner = Self { depth: self.depth + 1, ..self };
        if self.depth < MAX_DEPTH { Ok(Parts { inner, left }) } else { Err(Stopped) }
    }
}

struct Parts<P> {
    inner: P,
    left: usize,
}

impl<'de> SeqAccess<'de> for Parts<Probe<'_>> {
    type Error = Stopped;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Stopped> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        self.inner.go_on()?;
        seed.deserialize(self.inner).map(Some)
    }
}

/// A map of nothing, once its keys have been looked at: names of fields are the keys of a struct with `flatten` alone.
impl<'de> MapAccess<'de> for Probe<'_> {
    type Error = Stopped;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Stopped> {
        let asked = Cell::new(None);
        let key = Probe { flaw: &asked, certain: true, ..*self };
        drop(seed.deserialize(key));
        match asked.get() {
            Some(Flaw::NoLength) => Err(self.stop(Flaw::NoLength)),
            _ => Ok(None),
        }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, _: T) -> Result<T::Value, Stopped> {
        Err(Stopped)
    }
}

/// The first variant, which another value need not be.
impl<'de> EnumAccess<'de> for Probe<'_> {
    type Error = Stopped;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Stopped> {
        let index: U32Deserializer<Stopped> = 0_u32.into_deserializer();
        Ok((seed.deserialize(index)?, Self { certain: false, ..self }))
    }
}

impl<'de> VariantAccess<'de> for Probe<'_> {
    type Error = Stopped;

    fn unit_variant(self) -> Result<(), Stopped> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Stopped> {
        seed.deserialize(self.parts(0)?.inner)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Stopped> {
        visitor.visit_seq(self.parts(length)?)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        visitor.visit_seq(self.parts(fields.len())?)
    }
}

macro_rules! made_up {
    ($($method:ident $visit:ident $type:ident),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
            visitor.$visit($type::from(self.ones))
        })*
    };
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Stopped;

    made_up! {
        deserialize_bool visit_bool bool,
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_i128 visit_i128 i128,
        deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16, deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64, deserialize_u128 visit_u128 u128,
        deserialize_f32 visit_f32 f32, deserialize_f64 visit_f64 f64,
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        visitor.visit_char(if self.ones { '1' } else { '0' })
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        visitor.visit_bytes(&[u8::from(self.ones); BYTES])
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        visitor.visit_byte_buf(vec![u8::from(self.ones); BYTES])
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stopped> {
        Err(self.stop(Flaw::Asks))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stopped> {
        Err(self.stop(Flaw::Asks))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stopped> {
        Err(self.stop(Flaw::NoLength))
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        visitor.visit_str(self.text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        visitor.visit_string(self.text.to_owned())
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        visitor.visit_none()
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        visitor.visit_newtype_struct(self.parts(0)?.inner)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        visitor.visit_seq(self.parts(0)?)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Stopped> {
        visitor.visit_seq(self.parts(length)?)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        visitor.visit_seq(self.parts(length)?)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        visitor.visit_map(self.parts(0)?.inner)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        visitor.visit_seq(self.parts(fields.len())?)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        visitor.visit_enum(self)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}
