//! What other instances and other writers have changed: hints as they come, and the log, which the promise
//! rests on.

pub(crate) mod hints;
pub(crate) mod tail;
