//! What keys and values must be able to do.

use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;

#[cfg(doc)]
use crate::error::Error;

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
/// L2 holds the bytes that bincode makes of a value: the contents in the order of the fields, without names or types. So
/// a value is put there only after a proof. `Deserialize` must ask for just what `Serialize` wrote: each number by its type,
/// each struct by the names of its fields. And what was read must write the same again. The proof is made for each
/// value that is loaded, in the background.
///
/// A value that fails it stays out of L2, and each instance loads it for itself. It is served from L1 as ever.
/// [`CacheStats::l2_unstorable`](crate::CacheStats::l2_unstorable) counts such values, and the trouble
/// [`ValuesUnstorable`](crate::TroubleKind::ValuesUnstorable) says why.
///
/// | Serde | In L2 |
/// | --- | --- |
/// | structs, tuples, enums, `Option`, lists, maps, sets, numbers, texts, bytes | yes |
/// | `rename`, `rename_all`, `alias`, `default`, `transparent`, `from`, `into`, `try_from`, `remote`, `bound` | yes |
/// | `rename(serialize = …)` of another name than `deserialize` has | no, unless an `alias` is the name that is written |
/// | `skip_serializing_if` | where no field is left out |
/// | `skip_serializing`, `skip_deserializing` of a field | no |
/// | `skip` of a variant | yes, but for variants whose index it moves |
/// | `flatten`, `untagged`, `tag` with or without `content` | no: the reader asks what comes next |
/// | `serde_json::Value`, `RawValue`, `Number`; `rust_decimal::Decimal` | no. Keep the JSON as text; a decimal `with` `serde::str` |
/// | chrono, uuid, `bytes::Bytes`, `Duration`, `SystemTime`, addresses | yes |
/// | `with`, `serialize_with`, `deserialize_with`, or `Serialize` by hand | where both sides agree |
/// | a `PathBuf` that is not UTF-8, or whatever else gives an error | no |
/// | more than 128 values within values, as in a list of boxes | no |
///
/// What nobody can see is what a type keeps to itself. `#[serde(skip)]` reads its default from L2, as it does from
/// anywhere. A `with` that rounds has rounded, and one that puts a list into another order has done so: lists count as
/// equal in any order, for sets and maps have none. In a *tuple* struct with both a `skip_serializing` and a `skip_deserializing`
/// field the next field is read in place of the other, where both are the default: its fields have no names.
pub trait Value: DeserializeOwned + Send + Serialize + Sync + 'static {}
impl<T: DeserializeOwned + Send + Serialize + Sync + 'static> Value for T {}
