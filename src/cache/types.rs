//! What keys and values must be able to do.

use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(doc)]
use crate::{Codec, Error};

/// What a key must be able to do. Implemented for every type that can.
///
/// Its text is how the log, L2 and hints name it: `to_string` must give what the trigger's key expression gives in
/// SQL, and `parse` must read that back. Integers, strings and UUIDs do. Keys are equal exactly where their texts are.
///
/// `Hash` should cover all that `Eq` compares, as a derived one does: keys of one hash take each other's place in L1.
///
/// What the trigger makes of a row is not known here. Case and blanks at the ends make no difference to what is evicted:
/// with the key expression `lower(slug)`, a write to `prod-61` is one to `Prod-61` too. Whatever else an expression does to a text
/// must be done to the key as well, in `FromStr` or where it is made. If it is not, writes evict another key. That is looked for
/// within a second or two of the first fill, beside the reads: the trouble
/// [`KeysDiffer`](crate::TroubleKind::KeysDiffer) tells of it. In a table that is too large to be searched in 200 ms only the
/// auditor finds the entry that stayed.
///
/// A load checks what it can. A text that is parsed as another key is [`Error::KeyNotReadBack`]. A loader that spells a key
/// otherwise than it was asked for is [`Error::UnaskedKeys`].
pub trait Key: Clone + Debug + Display + Eq + FromStr + Hash + Send + Sync + 'static {}
impl<T: Clone + Debug + Display + Eq + FromStr + Hash + Send + Sync + 'static> Key for T {}

/// What a value must be able to do. Implemented for every type that can.
///
/// # What L2 keeps
///
/// L2 holds the bytes that the cache's [`Codec`] makes of a value. bincode writes the contents in the order of the
/// fields, without names or types; JSON (feature `json`) says what it is. By either, a value is put there only after a proof that it comes back. By
/// bincode `Deserialize` must ask for just what `Serialize` wrote: each number by its type, each struct by the names of its fields.
/// By JSON the very bytes are read, and no field may be asked for that was not written. And what was read must write the same again.
/// The proof is made for each value that is loaded, in the background.
///
/// A value that fails it stays out of L2, and each instance loads it for itself. It is served from L1 as ever.
/// [`CacheStats::l2_unstorable`](crate::CacheStats::l2_unstorable) counts such values, and the trouble
/// [`ValuesUnstorable`](crate::TroubleKind::ValuesUnstorable) says why: from the first fill on, until ten minutes after the last one.
/// Where the type itself tells that bincode can bring back no value of it, [`CacheBuilder::loader`](crate::CacheBuilder::loader) fails:
/// one with `flatten`, with a tag or without, or `serde_json::Value`, and what always holds such a one. A part within an `Option`, a list, a map or a variant
/// of an enum may never be there, so it is told of when it is. [`CacheBuilder::local_only`](crate::CacheBuilder::local_only) says that a cache shall
/// stay out of L2, and nothing is told then.
///
/// | Serde | by bincode | by JSON |
/// | --- | --- | --- |
/// | structs, tuples, enums, `Option`, lists, maps, sets, numbers, texts, bytes | yes | yes, but for what follows |
/// | a float that is no number, or infinite; `Some` of what is nothing: `Some(None)`, `Some(())` | yes | no |
/// | maps by other keys than texts, numbers, `char`, `bool` and what is written as one of these | yes | no |
/// | `rename`, `rename_all`, `alias`, `default`, `transparent`, `from`, `into`, `try_from`, `remote`, `bound` | yes | yes |
/// | `rename(serialize = …)` of another name than `deserialize` has | no, unless an `alias` is the name that is written | the same |
/// | `skip_serializing_if` | where no field is left out | yes, where it skips the default alone; with an `alias`, or in a tuple struct, where no field is left out |
/// | `skip_serializing` of a field | no | no |
/// | `skip_deserializing` of a field | no | where it has its default |
/// | `skip` of a variant | yes, but for variants whose index it moves | yes |
/// | `flatten`, `untagged`, `tag` with or without `content` | no: the reader asks what comes next | yes |
/// | `serde_json::Value`, `RawValue`, `Number` | no. Keep the JSON as text | yes |
/// | `rust_decimal::Decimal` | no. Write it `with` `serde::str` | yes |
/// | chrono, uuid, `bytes::Bytes`, `Duration`, `SystemTime`, addresses | yes | yes |
/// | `with`, `serialize_with`, `deserialize_with`, or `Serialize` by hand | where both sides agree | the same |
/// | a `PathBuf` that is not UTF-8, or whatever else gives an error | no | no |
/// | more than 128 values within values, as in a list of boxes | no | no |
///
/// What nobody can see is what a type keeps to itself. `#[serde(skip)]` reads its default from L2, as it does from
/// anywhere. A `with` that rounds has rounded, and one that puts a list into another order has done so: lists count as
/// equal in any order, for sets and maps have none. In a *tuple* struct with both a `skip_serializing` and a `skip_deserializing`
/// field bincode reads the next field in place of the other, where both are the default: its fields have no names. By JSON, a `skip_serializing_if` that skips more than
/// the default (an empty list in an `Option`, -0.0) is read as the default. Two variants of an untagged enum that write the same, by types of the
/// same name, are one. And inside of what is flattened, tagged or untagged, Serde does not tell which fields are
/// asked for: one with `skip_serializing` and a default is read there as its default.
pub trait Value: DeserializeOwned + Send + Serialize + Sync + 'static {}
impl<T: DeserializeOwned + Send + Serialize + Sync + 'static> Value for T {}
