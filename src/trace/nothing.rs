//! What is left without the feature `otel`.

use std::fmt::{Arguments, Display};

use super::Kind;

#[derive(Debug, Clone)]
pub(crate) struct Trace;

#[derive(Debug)]
pub(crate) struct Span;

#[derive(Debug, Clone)]
pub(crate) struct Origin;

#[inline]
pub(crate) const fn hits(_cache: &str, _keys: usize) {}

#[expect(clippy::unused_self, reason = "the same as with the feature")]
impl Trace {
    pub(crate) const fn current() -> Self {
        Self
    }

    pub(crate) const fn root() -> Self {
        Self
    }

    pub(crate) const fn remote(_traceparent: &str) -> Option<Self> {
        None
    }

    pub(crate) const fn begin(&self, _kind: Kind, _name: Arguments<'_>) -> Span {
        Span
    }

    pub(crate) const fn is_recorded(&self) -> bool {
        false
    }

    pub(crate) const fn link(&self, _origin: &Origin) {}

    pub(crate) const fn origin(&self) -> Origin {
        Origin
    }

    pub(crate) fn within<F: Future>(&self, work: F) -> F {
        work
    }
}

#[expect(clippy::unused_self, reason = "the same as with the feature")]
impl Span {
    pub(crate) const fn trace(&self) -> Trace {
        Trace
    }

    pub(crate) const fn text(&self, _name: &'static str, _value: &str) {}

    pub(crate) const fn number(&self, _name: &'static str, _value: u64) {}

    pub(crate) const fn link(&self, _origin: &Origin) {}

    pub(crate) const fn failed(&self, _error: &dyn Display) {}

    pub(crate) const fn traceparent(&self) -> Option<String> {
        None
    }
}
