//! The tape as a `Serializer`: each call is noted, none fails.

#[cfg(feature = "json")]
use std::hash::BuildHasher;

#[cfg(feature = "json")]
use foldhash::fast::FixedState;
use serde::ser::{self, Serialize, Serializer};

use super::super::flaw::{Flaw, Stopped};
#[cfg(feature = "json")]
use super::LeftOut;
use super::{CHOICE_BYTES, ENTRY_BYTES, HEAP_BYTES, Tape, kind, length};

/// Something with parts, while they are written.
pub(crate) struct Open<'t> {
    tape: &'t mut Tape,
    kind: u8,
    /// Of a struct, or of its variant.
    name: &'static str,
    at: usize,
    declared: Option<usize>,
    count: usize,
    /// Where its own names begin among those of all that are open.
    names: usize,
}

impl Open<'_> {
    fn part<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Stopped> {
        self.count += 1;
        self.tape.write_part(value, self.kind == kind::SEQ);
        Ok(())
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Stopped> {
        if self.tape.recording {
            self.tape.open.push(name);
        }
        self.part(value)
    }

    fn left_out(&mut self, field: &'static str) -> Result<(), Stopped> {
        self.tape.flaw.get_or_insert(Flaw::LeftOut { name: self.name, field });
        #[cfg(feature = "json")]
        self.tape.left_out(self.name, field);
        Ok(())
    }

    fn close(self) -> Result<(), Stopped> {
        let tape = self.tape;
        match self.declared {
            _ if !matches!(self.kind, kind::SEQ | kind::MAP) => {}
            None => drop(tape.flaw.get_or_insert(Flaw::NoLength)),
            Some(declared) if declared != self.count => drop(tape.flaw.get_or_insert(Flaw::WrongLength)),
            Some(_) => {}
        }
        if !tape.recording {
            return Ok(());
        }
        tape.calls[self.at + 1..self.at + 5].copy_from_slice(&length(self.count));
        if self.kind == kind::STRUCT {
            let hash = tape.hash_of_names(self.names);
            tape.calls[self.at + 5..self.at + 13].copy_from_slice(&hash.to_le_bytes());
            tape.open.truncate(self.names);
        }
        Ok(())
    }
}

impl Tape {
    fn begin(&mut self, kind: u8, name: &'static str, declared: Option<usize>, weight: usize) -> Open<'_> {
        self.weight = self.weight.saturating_add(weight);
        let at = self.calls.len();
        if self.recording {
            self.calls.extend_from_slice(&[kind, 0, 0, 0, 0]);
            if kind == kind::STRUCT {
                self.calls.extend_from_slice(&[0; 8]);
            }
        }
        let names = self.open.len();
        Open { tape: self, kind, name, at, declared, count: 0, names }
    }
}

impl Tape {
    /// A struct, or an enum, of this name is written.
    #[inline]
    fn of_type(&mut self, name: &'static str) {
        #[cfg(feature = "json")]
        if self.recording {
            self.types = self.types.wrapping_add(FixedState::default().hash_one(name));
        }
        #[cfg(not(feature = "json"))]
        let _only_json_asks = name;
    }
}

#[cfg(feature = "json")]
impl Tape {
    fn left_out(&mut self, name: &'static str, field: &'static str) {
        let left = LeftOut { name, field };
        if self.recording && !self.left_out.contains(&left) {
            self.left_out.push(left);
        }
    }
}

macro_rules! numbers {
    ($($method:ident $type:ident $kind:ident),* $(,)?) => {
        $(fn $method(self, number: $type) -> Result<(), Stopped> {
            self.put(kind::$kind, number.to_le_bytes(), size_of::<$type>())
        })*
    };
}

impl<'t> Serializer for &'t mut Tape {
    type Ok = ();
    type Error = Stopped;
    type SerializeSeq = Open<'t>;
    type SerializeTuple = Open<'t>;
    type SerializeTupleStruct = Open<'t>;
    type SerializeTupleVariant = Open<'t>;
    type SerializeMap = Open<'t>;
    type SerializeStruct = Open<'t>;
    type SerializeStructVariant = Open<'t>;

    numbers! {
        serialize_i8 i8 I8, serialize_i16 i16 I16, serialize_i32 i32 I32, serialize_i64 i64 I64, serialize_i128 i128 I128,
        serialize_u8 u8 U8, serialize_u16 u16 U16, serialize_u32 u32 U32, serialize_u64 u64 U64, serialize_u128 u128 U128,
        serialize_f32 f32 F32, serialize_f64 f64 F64,
    }

    fn serialize_bool(self, value: bool) -> Result<(), Stopped> {
        self.put(kind::BOOL, [u8::from(value)], 1)
    }

    fn serialize_char(self, value: char) -> Result<(), Stopped> {
        self.put(kind::CHAR, u32::from(value).to_le_bytes(), 4)
    }

    fn serialize_str(self, text: &str) -> Result<(), Stopped> {
        self.put_bytes(kind::STR, text.as_bytes())
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), Stopped> {
        self.put_bytes(kind::BYTES, bytes)
    }

    fn serialize_none(self) -> Result<(), Stopped> {
        self.put(kind::NONE, [], CHOICE_BYTES)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Stopped> {
        self.put(kind::SOME, [], CHOICE_BYTES)?;
        self.write(value);
        Ok(())
    }

    fn serialize_unit(self) -> Result<(), Stopped> {
        self.put(kind::UNIT, [], 0)
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<(), Stopped> {
        self.of_type(name);
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, of: &'static str, index: u32, name: &'static str) -> Result<(), Stopped> {
        self.of_type(of);
        self.put_variant(index, name)?;
        self.serialize_unit()
    }

    /// bincode writes what is in it, and nothing more.
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<(), Stopped> {
        self.of_type(name);
        self.write(value);
        Ok(())
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        of: &'static str,
        index: u32,
        name: &'static str,
        value: &T,
    ) -> Result<(), Stopped> {
        self.of_type(of);
        self.put_variant(index, name)?;
        self.write(value);
        Ok(())
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Open<'t>, Stopped> {
        Ok(self.begin(kind::SEQ, "", length, HEAP_BYTES))
    }

    fn serialize_tuple(self, length: usize) -> Result<Open<'t>, Stopped> {
        Ok(self.begin(kind::TUPLE, "", Some(length), 0))
    }

    fn serialize_tuple_struct(self, name: &'static str, length: usize) -> Result<Open<'t>, Stopped> {
        self.of_type(name);
        self.serialize_tuple(length)
    }

    fn serialize_tuple_variant(
        self,
        of: &'static str,
        index: u32,
        name: &'static str,
        length: usize,
    ) -> Result<Open<'t>, Stopped> {
        self.of_type(of);
        self.put_variant(index, name)?;
        self.serialize_tuple(length)
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Open<'t>, Stopped> {
        Ok(self.begin(kind::MAP, "", length, HEAP_BYTES))
    }

    fn serialize_struct(self, name: &'static str, length: usize) -> Result<Open<'t>, Stopped> {
        self.of_type(name);
        Ok(self.begin(kind::STRUCT, name, Some(length), 0))
    }

    fn serialize_struct_variant(
        self,
        of: &'static str,
        index: u32,
        name: &'static str,
        length: usize,
    ) -> Result<Open<'t>, Stopped> {
        self.of_type(of);
        self.put_variant(index, name)?;
        self.serialize_struct(name, length)
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

macro_rules! parts {
    ($($kind:ident $method:ident),*) => {
        $(impl ser::$kind for Open<'_> {
            type Ok = ();
            type Error = Stopped;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Stopped> {
                self.part(value)
            }

            fn end(self) -> Result<(), Stopped> {
                self.close()
            }
        })*
    };
}

macro_rules! fields {
    ($($kind:ident),*) => {
        $(impl ser::$kind for Open<'_> {
            type Ok = ();
            type Error = Stopped;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Stopped> {
                self.field(name, value)
            }

            fn skip_field(&mut self, name: &'static str) -> Result<(), Stopped> {
                self.left_out(name)
            }

            fn end(self) -> Result<(), Stopped> {
                self.close()
            }
        })*
    };
}

parts! {
    SerializeSeq serialize_element, SerializeTuple serialize_element, SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field
}
fields!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Open<'_> {
    type Ok = ();
    type Error = Stopped;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Stopped> {
        self.tape.weight = self.tape.weight.saturating_add(ENTRY_BYTES);
        self.part(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Stopped> {
        self.tape.write_part(value, false);
        Ok(())
    }

    fn end(self) -> Result<(), Stopped> {
        self.close()
    }
}
