//! What a value writes of itself: each call of its `Serialize`, in order, with what was written.
//!
//! bincode writes a value without its types and names, so its bytes can't tell whether they will be read as they were
//! written. A tape can: [`read_back`](super::read_back) asks it for what `Deserialize` wants. Nothing fails here on what
//! bincode can't write, so each value has a weight, and any two can be compared.

use std::any::type_name;
use std::hash::BuildHasher;
use std::panic::{AssertUnwindSafe, catch_unwind};

use foldhash::fast::FixedState;
use serde::Serialize;

use super::flaw::{Flaw, Stopped};

mod serializer;

/// Kinds of calls: a byte, then what the comment says.
pub(super) mod kind {
    /// One byte; then numbers of the size of their type, little-endian.
    pub(in super::super) const BOOL: u8 = 1;
    pub(in super::super) const I8: u8 = 2;
    pub(in super::super) const I16: u8 = 3;
    pub(in super::super) const I32: u8 = 4;
    pub(in super::super) const I64: u8 = 5;
    pub(in super::super) const I128: u8 = 6;
    pub(in super::super) const U8: u8 = 7;
    pub(in super::super) const U16: u8 = 8;
    pub(in super::super) const U32: u8 = 9;
    pub(in super::super) const U64: u8 = 10;
    pub(in super::super) const U128: u8 = 11;
    pub(in super::super) const F32: u8 = 12;
    pub(in super::super) const F64: u8 = 13;
    pub(in super::super) const CHAR: u8 = 14;
    /// Length, and so many bytes.
    pub(in super::super) const STR: u8 = 15;
    pub(in super::super) const BYTES: u8 = 16;
    /// Nothing.
    pub(in super::super) const UNIT: u8 = 17;
    pub(in super::super) const NONE: u8 = 18;
    /// The value.
    pub(in super::super) const SOME: u8 = 19;
    /// Index, hash of the name, and what the variant has: `UNIT` where that is nothing.
    pub(in super::super) const VARIANT: u8 = 20;
    /// How many, and each.
    pub(in super::super) const SEQ: u8 = 21;
    pub(in super::super) const TUPLE: u8 = 22;
    /// How many, and each key with its value.
    pub(in super::super) const MAP: u8 = 23;
    /// How many, hash of the names, and each field.
    pub(in super::super) const STRUCT: u8 = 24;
}

/// Bytes in memory beside the contents: where they lie, how many they are, and the allocator's part.
const HEAP_BYTES: usize = 32;
/// The like for an entry of a map.
const ENTRY_BYTES: usize = 16;
/// A `serde_json::Value` where it stands, whatever it is: it has the room of its largest variant.
const JSON_BYTES: usize = 32;
/// An `Option` that is none takes the room of one that isn't; a variant the room of the largest.
const CHOICE_BYTES: usize = 8;

/// Values within values. What is deeper than that is not followed: whoever reads it back needs as much of the stack.
const MAX_DEPTH: usize = 128;

/// What a value wrote.
#[derive(Debug, Default)]
pub(crate) struct Tape {
    /// Empty where only the weight was wanted.
    pub(super) calls: Vec<u8>,
    /// Fields of each struct of another set of names, by the hash that stands in the calls.
    pub(super) names: Vec<(u64, Vec<&'static str>)>,
    /// The names of the structs that are being written.
    open: Vec<&'static str>,
    recording: bool,
    weight: usize,
    depth: usize,
    pub(super) flaw: Option<Flaw>,
    #[cfg(feature = "json")]
    pub(super) left_out: Vec<LeftOut>,
    /// Of the names of all types, in whatever order: a hash map has none. bincode's reader is told no names of those that were
    /// written, so they are not among the calls.
    #[cfg(feature = "json")]
    types: u64,
}

/// A field that a struct, or a variant, of this name left out of what it wrote.
#[cfg(feature = "json")]
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    pub(super) name: &'static str,
    pub(super) field: &'static str,
}

/// About how many bytes a value takes in memory. Of a part whose `Serialize` gives an error only what came before it is seen; of one
/// that is too deep nothing.
pub(crate) fn weigh<V: Serialize>(value: &V) -> usize {
    let mut tape = Tape::default();
    tape.write_all(value);
    tape.weight
}

/// Whether a value has more values within values than are followed.
pub(super) fn is_too_deep<V: Serialize>(value: &V) -> bool {
    let mut tape = Tape::default();
    tape.write_all(value);
    tape.flaw == Some(Flaw::TooDeep)
}

impl Tape {
    pub(crate) fn of<V: Serialize>(value: &V) -> Self {
        let mut tape = Self { recording: true, ..Self::default() };
        tape.write_all(value);
        tape
    }

    /// Whether the value could be written to its end. Else nothing can be said of it but its weight.
    pub(crate) fn is_whole(&self) -> bool {
        !matches!(self.flaw, Some(Flaw::Unwritable | Flaw::Panicked | Flaw::TooDeep))
    }

    /// Whether another one says the same, but for the order of what may be in a hash map or a hash set.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        self.calls == other.calls || self.sorted(true) == other.sorted(true)
    }

    /// Whether another one has the same types, which left out the same fields. What is untagged may be read as another variant
    /// that writes the same.
    #[cfg(feature = "json")]
    pub(super) fn is_of_the_same_types(&self, other: &Self) -> bool {
        let left_out = |left: &LeftOut| other.left_out.contains(left);
        self.types == other.types
            && self.left_out.len() == other.left_out.len()
            && self.left_out.iter().all(left_out)
    }

    /// The calls, with the entries of each map in order; and the elements of each list, where `lists` says so.
    pub(crate) fn sorted(&self, lists: bool) -> Vec<u8> {
        let mut sorted = Vec::with_capacity(self.calls.len());
        let mut rest = &self.calls[..];
        sort(&mut rest, lists, &mut sorted);
        sorted
    }

    fn write_all<V: Serialize>(&mut self, value: &V) {
        if catch_unwind(AssertUnwindSafe(|| self.write(value))).is_err() {
            self.flaw = Some(Flaw::Panicked);
        }
    }

    fn write<V: Serialize + ?Sized>(&mut self, value: &V) {
        if self.depth >= MAX_DEPTH {
            self.flaw = Some(Flaw::TooDeep);
            return;
        }
        self.depth += 1;
        // A part that gives an error must not hide the weight of those after it.
        if value.serialize(&mut *self).is_err() {
            self.flaw = Some(Flaw::Unwritable);
        }
        self.depth -= 1;
    }

    /// A part of something else. What writes nothing takes room in a list all the same.
    fn write_part<T: Serialize + ?Sized>(&mut self, value: &T, in_a_list: bool) {
        let before = self.weight;
        self.write(value);
        // The size of the type is not known here: lists give references.
        if type_name::<T>().ends_with("serde_json::value::Value") {
            self.weight = self.weight.max(before.saturating_add(JSON_BYTES));
        } else if in_a_list && self.weight == before {
            self.weight = before.saturating_add(CHOICE_BYTES);
        }
    }

    #[inline]
    fn put<const N: usize>(&mut self, kind: u8, contents: [u8; N], weight: usize) -> Result<(), Stopped> {
        self.weight = self.weight.saturating_add(weight);
        if self.recording {
            self.calls.reserve(1 + N);
            self.calls.push(kind);
            self.calls.extend_from_slice(&contents);
        }
        Ok(())
    }

    fn put_bytes(&mut self, kind: u8, bytes: &[u8]) -> Result<(), Stopped> {
        self.put(kind, length(bytes.len()), HEAP_BYTES + bytes.len())?;
        if self.recording {
            self.calls.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn put_variant(&mut self, index: u32, name: &str) -> Result<(), Stopped> {
        self.put(kind::VARIANT, index.to_le_bytes(), CHOICE_BYTES)?;
        if self.recording {
            self.calls.extend_from_slice(&FixedState::default().hash_one(name).to_le_bytes());
        }
        Ok(())
    }

    /// Of the names of the innermost struct. A tape has few sets of names, and one of them again and again.
    fn hash_of_names(&mut self, from: usize) -> u64 {
        let names = &self.open[from..];
        if let Some((hash, _)) = self.names.iter().find(|(_, known)| same_names(known, names)) {
            return *hash;
        }
        let hash = FixedState::default().hash_one(names);
        self.names.push((hash, names.to_vec()));
        hash
    }
}

/// More can't be put into L2 anyway.
fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes()
}

/// One value of a tape, which must be whole.
fn sort(rest: &mut &[u8], lists: bool, sorted: &mut Vec<u8>) {
    let Some(kind) = rest.first().copied() else { return };
    match kind {
        kind::SOME => take(rest, 1, sorted, |rest, sorted| sort(rest, lists, sorted)),
        kind::VARIANT => take(rest, 13, sorted, |rest, sorted| sort(rest, lists, sorted)),
        kind::TUPLE | kind::SEQ | kind::STRUCT | kind::MAP => {
            let count = number(rest, 1);
            let head = if kind == kind::STRUCT { 13 } else { 5 };
            let each = if kind == kind::MAP { 2 } else { 1 };
            let free = kind == kind::MAP || (kind == kind::SEQ && lists);
            take(rest, head, sorted, |rest, sorted| match free {
                false => (0..count).for_each(|_| sort(rest, lists, sorted)),
                true => {
                    let mut runs: Vec<Vec<u8>> = Vec::new();
                    for _ in 0..count {
                        let mut run = Vec::new();
                        (0..each).for_each(|_| sort(rest, lists, &mut run));
                        runs.push(run);
                    }
                    runs.sort_unstable();
                    runs.iter().for_each(|run| sorted.extend_from_slice(run));
                }
            });
        }
        kind => {
            let length = match size(kind) {
                Some(size) => 1 + size,
                None => 5 + number(rest, 1) as usize,
            };
            take(rest, length, sorted, |_, _| {});
        }
    }
}

/// Copies so many bytes, and goes on with what follows.
fn take(rest: &mut &[u8], length: usize, sorted: &mut Vec<u8>, then: impl FnOnce(&mut &[u8], &mut Vec<u8>)) {
    let (head, tail) = rest.split_at(length.min(rest.len()));
    sorted.extend_from_slice(head);
    *rest = tail;
    then(rest, sorted);
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// Bytes after the kind; `None` for texts and bytes.
pub(super) const fn size(kind: u8) -> Option<usize> {
    match kind {
        kind::BOOL | kind::I8 | kind::U8 => Some(1),
        kind::I16 | kind::U16 => Some(2),
        kind::I32 | kind::U32 | kind::F32 | kind::CHAR => Some(4),
        kind::I64 | kind::U64 | kind::F64 => Some(8),
        kind::I128 | kind::U128 => Some(16),
        kind::STR | kind::BYTES => None,
        _ => Some(0),
    }
}

/// The same literal mostly has the same address, and then need not be read.
pub(super) fn same_names(names: &[&str], others: &[&str]) -> bool {
    let same = |(one, other): (&&str, &&str)| std::ptr::eq(*one, *other) || one == other;
    names.len() == others.len() && names.iter().zip(others).all(same)
}
