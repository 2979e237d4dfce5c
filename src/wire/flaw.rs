//! Why a value can't be in L2.

use std::fmt;

/// Why L2 can't bring a value back. Names types and fields, never what is in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    LeftOut {
        name: &'static str,
        field: &'static str,
    },
    NoLength,
    WrongLength,
    Unwritable,
    #[cfg(feature = "json")]
    NotJson,
    Asks,
    Fields {
        name: &'static str,
    },
    Otherwise,
    Differs,
    TooLarge,
    TooDeep,
    Panicked,
}

impl Flaw {
    /// Whether it is one of bincode alone.
    pub(crate) const fn is_none_in_json(self) -> bool {
        matches!(self, Self::LeftOut { .. } | Self::NoLength | Self::Asks | Self::Otherwise)
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeftOut { name, field } => {
                write!(f, "{name} leaves its field {field} out of what it writes (`skip_serializing_if`)")
            }
            Self::NoLength => f.write_str("it has a map or a list of a length that is not known before it is written (`flatten`)"),
            Self::WrongLength => f.write_str("it has a map or a list of another length than its `Serialize` says"),
            Self::Unwritable => f.write_str("its `Serialize` gives an error"),
            #[cfg(feature = "json")]
            Self::NotJson => f.write_str("JSON can't say it: a map has keys that are neither texts nor numbers"),
            Self::Asks => f.write_str(
                "its `Deserialize` asks what comes next (`untagged`, `tag`, `flatten`, `serde_json::Value`), which the bytes don't say",
            ),
            Self::Fields { name } => write!(
                f,
                "the fields that {name} writes are not those that it reads (`skip_serializing`, `skip_deserializing`, `rename`)"
            ),
            Self::Otherwise => f.write_str("its `Deserialize` asks for something else than its `Serialize` wrote"),
            Self::Differs => f.write_str("what it reads back differs from what was written"),
            Self::TooLarge => f.write_str("it is larger than what can be read back"),
            Self::TooDeep => f.write_str("it has more than 128 values within values"),
            Self::Panicked => f.write_str("its `Serialize` or its `Deserialize` panicked"),
        }
    }
}

/// The end of a value whose `Serialize` or `Deserialize` gave an error. Its text may hold what the value holds, so it is
/// not kept.
#[derive(Debug)]
pub(crate) struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped")
    }
}

impl std::error::Error for Stopped {}

impl serde::ser::Error for Stopped {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl serde::de::Error for Stopped {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}
