//! What a type is, by what its `Deserialize` asks for: known before there is a value.
//!
//! Made-up values are read, again and again: each variant of an enum is one time the one that is read. What is asked for on the way
//! makes a tree: names of types, fields and variants, their order, the kinds of numbers, and what is within what. Two builds that
//! ask for the same have the same fingerprint, whatever compiled them. It is part of the name of each value in L2, so what a
//! build with another type has put there is not even found.
//!
//! The tree also says whether bincode can read the type at all: what is asked for in all values of it, and not only within a
//! variant, an `Option`, a list or a map, is asked for in each.
//!
//! A type that takes no made-up value, since it checks its contents, ends the reading of what it is part of. The fields of a struct
//! are then read one by one, by their names. What follows in a tuple is not known, nor is what a type makes of whatever comes
//! (`untagged`, `tag`, `flatten`), or asks for by a value that came before: such a type is not traced as a whole, and that is told of.

use std::any::type_name;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::value::{StrDeserializer, U32Deserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use xxhash_rust::xxh3::xxh3_64;

use super::codec::Codec;
use super::flaw::{Flaw, Stopped};

/// What types that read a text may want: dates, times, UUIDs, addresses, versions.
const TEXTS: [&str; 13] = [
    "",
    "1",
    "a",
    "2000-01-01",
    "2000-01-01T00:00:00Z",
    "2000-01-01T00:00:00",
    "00:00:00",
    "00000000-0000-0000-0000-000000000000",
    "http://a/",
    "127.0.0.1",
    "127.0.0.1:1",
    "a@a.a",
    "1.0.0",
];
/// As many as a UUID has. Ones don't end a C string.
const BYTES: usize = 16;
/// What is deeper is not seen.
const MAX_DEPTH: usize = 32;
/// How often a struct or an enum may be within itself. With other parameters it is another one.
const MAX_WITHIN_ITSELF: usize = 2;
/// Parts that are read of one type, all times together: one may ask for a tuple without end, or hold itself twice and pass over what fails.
const MAX_PARTS: usize = 40_000;
/// How often a type that bincode seems not to read is read by other values.
const OTHERS: usize = 8;

/// What is known of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Of types that ask for the same it is the same, with every build. 0 where nothing could be tried.
    pub(crate) fingerprint: u32,
    /// Whether all of the type is in it.
    pub(crate) is_whole: bool,
    /// Why no value of the type comes back, where bincode is to read it. `None` where some may.
    pub(crate) unreadable: Option<Flaw>,
}

/// Traces a type as the codec reads it.
pub(crate) fn of<V: DeserializeOwned>(codec: Codec) -> Shape {
    // A made-up value must not end the program.
    if cfg!(panic = "abort") {
        return Shape { fingerprint: 0, is_whole: false, unreadable: None };
    }
    let (mut root, trace) = (Node::default(), Trace::new(codec.is_human_readable()));
    let ended = loop {
        trace.begin();
        let walk = Walk { node: &mut root, trace: &trace, above: None, depth: 0, visitor: "" };
        // The application's code.
        let read = catch_unwind(AssertUnwindSafe(|| V::deserialize(walk).is_ok()));
        let goes_on = match read {
            _ if trace.left.get() == 0 => break false,
            Err(_panic) => break false,
            Ok(true) => trace.news.get() && root.is_open(),
            Ok(false) => trace.blamed.get() || trace.blame_last(),
        };
        root.made |= matches!(read, Ok(true));
        if !goes_on {
            break true;
        }
    };
    let mut description = Vec::new();
    root.describe(&mut description);
    #[expect(clippy::cast_possible_truncation, reason = "any bits of it will do")]
    Shape {
        fingerprint: xxh3_64(&description) as u32,
        is_whole: ended && root.is_whole(),
        unreadable: root.flaw().filter(|_| ended && !root.made && !is_read_by_others::<V>(&mut root, &trace)),
    }
}

/// Whether other values are read: what was asked for may be due to those that were made up.
fn is_read_by_others<V: DeserializeOwned>(root: &mut Node, trace: &Trace) -> bool {
    trace.left.set(MAX_PARTS);
    (1..=OTHERS).any(|other| {
        trace.other.set(other);
        trace.leaves.borrow_mut().iter_mut().for_each(|values| values.is_fixed = false);
        loop {
            trace.begin();
            let walk = Walk { node: &mut *root, trace, above: None, depth: 0, visitor: "" };
            match catch_unwind(AssertUnwindSafe(|| V::deserialize(walk).is_ok())) {
                Ok(false) if trace.blamed.get() || trace.blame_last() => {}
                read => return matches!(read, Ok(true)),
            }
        }
    })
}

/// What was asked for at one place of a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Asked {
    /// Nothing: its `Deserialize` looks at nothing, or it was not reached.
    #[default]
    Nothing,
    Leaf(Leaf),
    /// Whatever comes.
    Any,
    /// A field's name, of a map whose fields nobody tells.
    Identifier,
    Option,
    List,
    Map,
    Newtype(&'static str),
    Tuple(&'static str, usize),
    Struct(&'static str, &'static [&'static str]),
    Enum(&'static str, &'static [&'static str]),
}

/// Their numbers are part of each fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaf {
    Bool = 16,
    I8,
    I16,
    I32,
    I64,
    I128,
    U8,
    U16,
    U32,
    U64,
    U128,
    F32,
    F64,
    Char,
    Text,
    Bytes,
    Unit,
}

impl Asked {
    /// Whether it is of a type that may hold itself.
    fn is_named(self) -> bool {
        match self {
            Self::Newtype(name) | Self::Tuple(name, _) | Self::Struct(name, _) | Self::Enum(name, _) => {
                !name.is_empty()
            }
            _ => false,
        }
    }
}

/// Why nothing is made by an alternative: by a variant, or with something in an `Option`, a list, a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// It holds itself without end, or is not there: all of it was seen elsewhere.
    TooDeep,
    /// It takes no made-up value.
    Values,
}

/// One place of a type.
#[derive(Debug, Default)]
struct Node {
    asked: Asked,
    /// Fields, elements, variants; keys and values of maps.
    parts: Vec<Self>,
    /// Whether something was made of it.
    made: bool,
    /// It has asked for something else before, which is forgotten.
    changed: bool,
    /// Nothing ever is, and what it is part of goes on without.
    refused: Option<Refused>,
    /// Of a leaf, which one it is.
    leaf: Option<usize>,
    /// Of a struct: fields from here on are read one by one, for what comes before is never made, and why.
    one_by_one: Option<(usize, Refused)>,
}

impl Node {
    /// A place that asks for something else than the last time is another one.
    fn ask(&mut self, asked: Asked) {
        if self.asked != asked {
            let changed = self.changed || self.asked != Asked::Nothing;
            *self = Self { asked, changed, refused: self.refused, ..Self::default() };
        }
    }

    fn part(&mut self, at: usize) -> &mut Self {
        while self.parts.len() <= at {
            self.parts.push(Self::default());
        }
        &mut self.parts[at]
    }

    /// Whether there is more to see in it.
    fn is_open(&self) -> bool {
        let parts = match (self.asked, self.one_by_one) {
            (Asked::Enum(_, variants), _) => variants.len(),
            (Asked::Struct(_, fields), Some(_)) => fields.len(),
            _ => 0,
        };
        let has_open = || self.parts.len() < parts || self.parts.iter().any(Self::is_open);
        self.refused.is_none() && (!self.made || has_open())
    }

    /// Whether all that the type has here was seen.
    fn is_whole(&self) -> bool {
        let parts = match self.asked {
            _ if self.changed => return false,
            _ if self.refused == Some(Refused::TooDeep) => return true,
            Asked::Any | Asked::Identifier => return false,
            Asked::Nothing => return self.made,
            Asked::Leaf(_) => 0,
            Asked::Enum(_, variants) => variants.len(),
            // Without a key there is no value, and it is made for all that.
            Asked::Map => 2,
            // One with aliases has more names than fields.
            _ if self.made => 0,
            Asked::Option | Asked::List | Asked::Newtype(_) => 1,
            Asked::Tuple(_, length) => length,
            Asked::Struct(_, fields) => fields.len(),
        };
        self.parts.len() >= parts && self.parts.iter().all(Self::is_whole)
    }

    /// What bincode can't answer, and is asked for in each value.
    fn flaw(&self) -> Option<Flaw> {
        match self.asked {
            Asked::Any => Some(Flaw::Asks),
            Asked::Identifier => Some(Flaw::NoLength),
            // Names of fields are the keys of a struct with `flatten` alone.
            Asked::Map => self.parts.first().filter(|key| key.asked == Asked::Identifier)?.flaw(),
            Asked::Newtype(_) | Asked::Tuple(..) | Asked::Struct(..) => {
                self.parts.iter().find_map(Self::flaw)
            }
            _ => None,
        }
    }

    fn describe(&self, out: &mut Vec<u8>) {
        let (kind, name, length, names): (u8, &str, usize, &[&str]) = match self.asked {
            Asked::Nothing => (0, "", 0, &[]),
            Asked::Any => (1, "", 0, &[]),
            Asked::Identifier => (2, "", 0, &[]),
            Asked::Option => (3, "", 0, &[]),
            Asked::List => (4, "", 0, &[]),
            Asked::Map => (5, "", 0, &[]),
            Asked::Newtype(name) => (6, name, 0, &[]),
            Asked::Tuple(name, length) => (7, name, length, &[]),
            Asked::Struct(name, fields) => (8, name, fields.len(), fields),
            Asked::Enum(name, variants) => (9, name, variants.len(), variants),
            Asked::Leaf(leaf) => (leaf as u8, "", 0, &[]),
        };
        out.push(kind);
        for text in std::iter::once(&name).chain(names) {
            out.extend((text.len() as u64).to_be_bytes());
            out.extend(text.as_bytes());
        }
        for count in [length, self.parts.len()] {
            out.extend((count as u64).to_be_bytes());
        }
        self.parts.iter().for_each(|part| part.describe(out));
    }
}

/// The made-up values of a leaf.
#[derive(Debug, Clone, Copy)]
struct Values {
    /// The first one.
    start: usize,
    /// How many after that.
    now: usize,
    of: usize,
    /// One that it took.
    taken: Option<usize>,
    /// It takes no other.
    is_fixed: bool,
}

/// What all parts of one trace share.
#[derive(Debug)]
struct Trace {
    is_human_readable: bool,
    /// Parts that may still be read.
    left: Cell<usize>,
    leaves: RefCell<Vec<Values>>,
    /// The value that was taken last, by the type of the visitor that took it.
    taken: RefCell<HashMap<&'static str, usize>>,
    /// So many others than those that were found are made up.
    other: Cell<usize>,
    /// The leaf that was read last, and how many parts were left then.
    last: Cell<Option<(usize, usize)>>,
    /// Whether this time failed, and the next one will do something otherwise.
    blamed: Cell<bool>,
    /// Whether this time something was made that never was before, or will be done otherwise from now on.
    news: Cell<bool>,
    /// Whether it failed because a type is within itself.
    too_deep: Cell<bool>,
}

impl Trace {
    fn new(is_human_readable: bool) -> Self {
        let (left, leaves, taken, last) =
            (Cell::new(MAX_PARTS), RefCell::default(), RefCell::default(), Cell::default());
        let (other, blamed, news, too_deep) = Default::default();
        Self { is_human_readable, left, leaves, taken, other, last, blamed, news, too_deep }
    }

    fn begin(&self) {
        self.last.set(None);
        self.blamed.set(false);
        self.news.set(false);
        self.too_deep.set(false);
    }

    /// Something was made of a place.
    fn made(&self, node: &mut Node) {
        if !std::mem::replace(&mut node.made, true) {
            self.news.set(true);
        }
    }

    /// Nothing ever will be.
    fn refuse(&self, node: &mut Node) {
        node.refused = Some(self.why());
        self.blame_this();
    }

    fn blame_this(&self) {
        self.blamed.set(true);
        self.news.set(true);
    }

    fn one_less(&self) -> Result<(), Stopped> {
        self.left.set(self.left.get().saturating_sub(1));
        if self.left.get() > 0 { Ok(()) } else { Err(Stopped) }
    }

    /// Another value for a leaf, the next time. Whether there is one.
    fn blame_leaf(&self, leaf: usize) -> bool {
        let mut leaves = self.leaves.borrow_mut();
        let values = &mut leaves[leaf];
        if self.other.get() > 0 {
            let was_other = !std::mem::replace(&mut values.is_fixed, true);
            self.blamed.set(was_other || self.blamed.get());
            return was_other;
        }
        if values.now + 1 < values.of {
            values.now += 1;
            self.blame_this();
            return true;
        }
        // None will do. So it was not what went wrong, unless it took none.
        values.of = 0;
        values.now = values.taken.unwrap_or_default();
        false
    }

    /// The same for the leaf that was just read, and taken: what was made of it may have failed.
    fn blame_last(&self) -> bool {
        self.last.get().is_some_and(|(leaf, left)| left == self.left.get() && self.blame_leaf(leaf))
    }

    /// Something failed that is an alternative. If nothing in it can be done otherwise, the other one is taken from now on.
    fn blame(&self, alternative: &mut Node) {
        if !self.blamed.get() && !self.blame_last() {
            self.refuse(alternative);
        }
    }

    fn why(&self) -> Refused {
        if self.too_deep.replace(false) { Refused::TooDeep } else { Refused::Values }
    }
}

/// Types that a place is within.
#[derive(Clone, Copy)]
struct Above<'w> {
    asked: Asked,
    /// The type of its visitor, of this process.
    visitor: &'static str,
    above: Option<&'w Self>,
}

struct Walk<'w> {
    node: &'w mut Node,
    trace: &'w Trace,
    above: Option<&'w Above<'w>>,
    depth: usize,
    visitor: &'static str,
}

impl Walk<'_> {
    /// One part more, for that visitor.
    fn ask<V>(&mut self, asked: Asked) -> Result<(), Stopped> {
        self.trace.one_less()?;
        self.visitor = type_name::<V>();
        let within = std::iter::successors(self.above, |above| above.above);
        let is_same = |above: &&Above<'_>| above.asked == asked && above.visitor == self.visitor;
        if asked.is_named() && within.filter(is_same).count() >= MAX_WITHIN_ITSELF {
            self.trace.too_deep.set(true);
            return Err(Stopped);
        }
        if self.depth > MAX_DEPTH {
            return Err(Stopped);
        }
        self.node.ask(asked);
        Ok(())
    }

    /// Reads a leaf by one of so many values.
    fn leaf<V, T>(
        mut self,
        asked: Asked,
        of: usize,
        read: impl FnOnce(usize) -> Result<T, Stopped>,
    ) -> Result<T, Stopped> {
        self.ask::<V>(asked)?;
        let leaf = *self.node.leaf.get_or_insert_with(|| {
            let mut leaves = self.trace.leaves.borrow_mut();
            let start = self.trace.taken.borrow().get(self.visitor).copied().unwrap_or_default();
            leaves.push(Values { start, now: 0, of, taken: None, is_fixed: false });
            leaves.len() - 1
        });
        let Values { start, now, is_fixed, .. } = self.trace.leaves.borrow()[leaf];
        let other = if is_fixed { 0 } else { self.trace.other.get() };
        let value = (start + now + other) % of;
        let read = read(value);
        if read.is_ok() {
            self.trace.leaves.borrow_mut()[leaf].taken.get_or_insert(now);
            self.trace.taken.borrow_mut().insert(self.visitor, value);
            self.trace.last.set(Some((leaf, self.trace.left.get())));
        } else {
            self.trace.blame_leaf(leaf);
        }
        read
    }
}

impl<'w> Walk<'w> {
    /// What the parts of this place are within.
    fn above(&self) -> Above<'w> {
        Above { asked: self.node.asked, visitor: self.visitor, above: self.above }
    }

    fn part<'p>(&'p mut self, at: usize, above: &'p Above<'p>) -> Walk<'p> {
        let (node, trace, depth) = (self.node.part(at), self.trace, self.depth + 1);
        Walk { node, trace, above: Some(above), depth, visitor: "" }
    }

    fn made<T>(&mut self, at: usize, read: Result<T, Stopped>) -> Result<T, Stopped> {
        if read.is_ok() {
            self.trace.made(self.node.part(at));
        }
        read
    }

    /// Reads what is there or not: as if it was, until that has failed.
    fn alternative<V, T>(
        mut self,
        asked: Asked,
        read: impl FnOnce(&mut Self, bool) -> Result<T, Stopped>,
    ) -> Result<T, Stopped> {
        self.ask::<V>(asked)?;
        let is_there = self.node.parts.iter().all(|part| part.refused.is_none());
        let read = read(&mut self, is_there);
        // A map whose keys are names of fields is a struct: bincode can't say of any value which they are.
        let is_certain = |part: &Node| part.asked == Asked::Identifier && !self.trace.is_human_readable;
        if let (Err(Stopped), Some(part)) = (&read, self.node.parts.last_mut())
            && is_there
            && !is_certain(part)
        {
            self.trace.blame(part);
        }
        read
    }

    /// Reads so many parts in their order.
    fn parts<'de, V: Visitor<'de>>(mut self, asked: Asked, visitor: V) -> Result<V::Value, Stopped> {
        self.ask::<V>(asked)?;
        let count = match asked {
            Asked::Tuple(_, length) => length,
            Asked::Struct(_, fields) => fields.len(),
            _ => 1,
        };
        let above = self.above();
        let mut parts = Parts { walk: &mut self, above: &above, at: 0, count };
        let read = visitor.visit_seq(&mut parts);
        let at = parts.at;
        let is_struct = matches!(asked, Asked::Struct(..));
        if read.is_err() && is_struct && !self.trace.blamed.get() && !self.trace.blame_last() {
            // One that asks for no part wants their names.
            let refused = at.checked_sub(1).and_then(|last| {
                let part = self.node.part(last);
                self.trace.refuse(part);
                part.refused
            });
            self.trace.blame_this();
            self.node.one_by_one = Some((at, refused.unwrap_or(Refused::Values)));
        }
        read
    }

    fn fields<'de, V: Visitor<'de>>(
        mut self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        let asked = Asked::Struct(name, fields);
        let Some((mut at, why)) = self.node.one_by_one.filter(|_| self.node.asked == asked) else {
            return self.parts(asked, visitor);
        };
        self.ask::<V>(asked)?;
        while self.node.parts.get(at).is_some_and(|part| !part.is_open()) {
            at += 1;
        }
        self.node.one_by_one = Some((at, why));
        let Some(field) = fields.get(at) else {
            // All of it was seen. It is made no more for that.
            self.trace.too_deep.set(why == Refused::TooDeep);
            return Err(Stopped);
        };
        let above = self.above();
        let mut one = OneField { walk: &mut self, above: &above, name: Some(field), at, is_made: false };
        let read = visitor.visit_map(&mut one);
        let is_made = one.is_made;
        match read {
            Err(Stopped) if is_made => self.trace.blame_this(),
            Err(Stopped) => self.trace.blame(self.node.part(at)),
            Ok(_) => {}
        }
        read
    }
}

/// Elements of a list, a tuple, a struct.
struct Parts<'p, 'w> {
    walk: &'p mut Walk<'w>,
    above: &'p Above<'p>,
    at: usize,
    count: usize,
}

impl<'de> SeqAccess<'de> for &mut Parts<'_, '_> {
    type Error = Stopped;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Stopped> {
        if self.at == self.count {
            return Ok(None);
        }
        self.walk.trace.one_less()?;
        self.at += 1;
        let read = seed.deserialize(self.walk.part(self.at - 1, self.above));
        self.walk.made(self.at - 1, read).map(Some)
    }
}

/// One field of a struct, by its name.
struct OneField<'p, 'w> {
    walk: &'p mut Walk<'w>,
    above: &'p Above<'p>,
    name: Option<&'static str>,
    at: usize,
    is_made: bool,
}

impl<'de> MapAccess<'de> for &mut OneField<'_, '_> {
    type Error = Stopped;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Stopped> {
        let Some(name) = self.name.take() else { return Ok(None) };
        let name: StrDeserializer<'_, Stopped> = name.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Stopped> {
        let read = seed.deserialize(self.walk.part(self.at, self.above));
        self.is_made = read.is_ok();
        self.walk.made(self.at, read)
    }
}

/// One key and its value.
struct OneEntry<'p, 'w> {
    walk: &'p mut Walk<'w>,
    above: &'p Above<'p>,
    is_there: bool,
}

impl<'de> MapAccess<'de> for &mut OneEntry<'_, '_> {
    type Error = Stopped;

    fn next_key_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Stopped> {
        match std::mem::take(&mut self.is_there) {
            true => {
                let read = seed.deserialize(self.walk.part(0, self.above));
                self.walk.made(0, read).map(Some)
            }
            false => Ok(None),
        }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Stopped> {
        self.walk.trace.one_less()?;
        let read = seed.deserialize(self.walk.part(1, self.above));
        self.walk.made(1, read)
    }

    /// Where no key is made, the value is seen for all that.
    fn next_entry_seed<K: DeserializeSeed<'de>, T: DeserializeSeed<'de>>(
        &mut self,
        key: K,
        value: T,
    ) -> Result<Option<(K::Value, T::Value)>, Stopped> {
        let key = match self.next_key_seed(key) {
            Ok(None) => return Ok(None),
            Ok(Some(key)) => return Ok(Some((key, self.next_value_seed(value)?))),
            Err(stopped) => stopped,
        };
        let trace = self.walk.trace;
        if trace.blamed.get() || trace.blame_last() || trace.too_deep.get() {
            return Err(key);
        }
        trace.news.set(false);
        let is_made = self.next_value_seed(value).is_ok();
        if is_made && trace.news.get() && self.walk.node.part(1).is_open() {
            trace.blame_this();
        }
        Err(key)
    }
}

/// The variant of that number.
struct Variant<'p> {
    walk: Walk<'p>,
    at: usize,
    name: &'static str,
}

impl<'de, 'p> EnumAccess<'de> for Variant<'p> {
    type Error = Stopped;
    type Variant = Walk<'p>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Walk<'p>), Stopped> {
        let variant = if self.walk.trace.is_human_readable {
            let name: StrDeserializer<'_, Stopped> = self.name.into_deserializer();
            seed.deserialize(name)?
        } else {
            let index: U32Deserializer<Stopped> =
                u32::try_from(self.at).unwrap_or(u32::MAX).into_deserializer();
            // One with aliases has more names than variants.
            seed.deserialize(index).inspect_err(|_| self.walk.trace.too_deep.set(true))?
        };
        Ok((variant, self.walk))
    }
}

impl<'de> VariantAccess<'de> for Walk<'_> {
    type Error = Stopped;

    fn unit_variant(mut self) -> Result<(), Stopped> {
        self.ask::<()>(Asked::Leaf(Leaf::Unit))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(mut self, seed: T) -> Result<T::Value, Stopped> {
        self.ask::<()>(Asked::Newtype(""))?;
        let above = self.above();
        let read = seed.deserialize(self.part(0, &above));
        self.made(0, read)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Stopped> {
        self.parts(Asked::Tuple("", length), visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        self.fields("", fields, visitor)
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ident $leaf:ident),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
            self.leaf::<V, _>(Asked::Leaf(Leaf::$leaf), 2, |now| visitor.$visit($type::from(now == 0)))
        })*
    };
}

impl<'de> Deserializer<'de> for Walk<'_> {
    type Error = Stopped;

    numbers! {
        deserialize_bool visit_bool bool Bool,
        deserialize_i8 visit_i8 i8 I8, deserialize_i16 visit_i16 i16 I16, deserialize_i32 visit_i32 i32 I32,
        deserialize_i64 visit_i64 i64 I64, deserialize_i128 visit_i128 i128 I128,
        deserialize_u8 visit_u8 u8 U8, deserialize_u16 visit_u16 u16 U16, deserialize_u32 visit_u32 u32 U32,
        deserialize_u64 visit_u64 u64 U64, deserialize_u128 visit_u128 u128 U128,
        deserialize_f32 visit_f32 f32 F32, deserialize_f64 visit_f64 f64 F64,
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.leaf::<V, _>(Asked::Leaf(Leaf::Char), 2, |now| {
            visitor.visit_char(if now == 0 { '1' } else { 'a' })
        })
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.leaf::<V, _>(Asked::Leaf(Leaf::Bytes), 2, |now| {
            visitor.visit_bytes(&[u8::from(now == 0); BYTES])
        })
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.leaf::<V, _>(Asked::Leaf(Leaf::Bytes), 2, |now| {
            visitor.visit_byte_buf(vec![u8::from(now == 0); BYTES])
        })
    }

    /// What takes whatever comes takes nothing at all, too, or one of these.
    fn deserialize_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Stopped> {
        if self.trace.is_human_readable {
            return self.leaf::<V, _>(Asked::Any, 4, |now| match now {
                0 => visitor.visit_unit(),
                1 => visitor.visit_u64(1),
                2 => visitor.visit_str("1"),
                _ => visitor.visit_bool(true),
            });
        }
        // It may be due to what came before.
        let last = self.trace.last.get();
        self.ask::<V>(Asked::Any)?;
        if let Some((leaf, _)) = last
            && !self.trace.blamed.get()
        {
            self.trace.blame_leaf(leaf);
        }
        Err(Stopped)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        if self.trace.is_human_readable { visitor.visit_unit() } else { self.deserialize_any(visitor) }
    }

    fn deserialize_identifier<V: Visitor<'de>>(mut self, _: V) -> Result<V::Value, Stopped> {
        self.ask::<V>(Asked::Identifier)?;
        Err(Stopped)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.leaf::<V, _>(Asked::Leaf(Leaf::Text), TEXTS.len(), |now| visitor.visit_str(TEXTS[now]))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.leaf::<V, _>(Asked::Leaf(Leaf::Text), TEXTS.len(), |now| {
            visitor.visit_string(TEXTS[now].to_owned())
        })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.alternative::<V, _>(Asked::Option, |walk, is_there| {
            let above = walk.above();
            if !is_there {
                return visitor.visit_none();
            }
            let read = visitor.visit_some(walk.part(0, &above));
            walk.made(0, read)
        })
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.leaf::<V, _>(Asked::Leaf(Leaf::Unit), 1, |_| visitor.visit_unit())
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        self.ask::<V>(Asked::Tuple(name, 0))?;
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        self.ask::<V>(Asked::Newtype(name))?;
        let above = self.above();
        let read = visitor.visit_newtype_struct(self.part(0, &above));
        self.made(0, read)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.alternative::<V, _>(Asked::List, |walk, is_there| {
            let above = walk.above();
            visitor.visit_seq(&mut Parts { walk, above: &above, at: 0, count: usize::from(is_there) })
        })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Stopped> {
        self.parts(Asked::Tuple("", length), visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        self.parts(Asked::Tuple(name, length), visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Stopped> {
        self.alternative::<V, _>(Asked::Map, |walk, is_there| {
            let above = walk.above();
            visitor.visit_map(&mut OneEntry { walk, above: &above, is_there })
        })
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
        mut self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        self.ask::<V>(Asked::Enum(name, variants))?;
        variants.len().checked_sub(1).map(|last| self.node.part(last));
        let mut left = self.node.parts.iter().enumerate().filter(|(_, part)| part.refused.is_none());
        // One that was seen as a whole is as good as any other.
        let new = left.clone().find(|(_, part)| part.is_open());
        let other = self.trace.other.get();
        let found = match left.clone().count() {
            count if other > 0 && count > 0 => left.nth(other % count),
            _ => new.or_else(|| left.next()),
        };
        let Some((at, _)) = found else { return Err(Stopped) };
        let above = self.above();
        let variant = Variant { walk: self.part(at, &above), at, name: variants[at] };
        let read = visitor.visit_enum(variant);
        if read.is_err() {
            self.trace.blame(self.node.part(at));
        }
        self.made(at, read)
    }

    fn is_human_readable(&self) -> bool {
        self.trace.is_human_readable
    }
}
