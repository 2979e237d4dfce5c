//! Spans, by the API of `OpenTelemetry` and whatever provider the application has set.

use std::fmt::{Arguments, Display};

use opentelemetry::context::FutureExt as _;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer as _,
};
use opentelemetry::{Context, KeyValue, global};

use super::Kind;

/// What a span would be part of; none where nothing is recorded.
#[derive(Debug, Clone)]
pub(crate) struct Trace(Option<Context>);

/// A span in progress. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Span(Trace);

/// A span that others may link to.
#[derive(Debug, Clone)]
pub(crate) struct Origin(Option<SpanContext>);

/// Notes hits of L1 on the span that they happened in: they have none of their own.
#[inline]
pub(crate) fn hits(cache: &str, keys: usize) {
    Context::map_current(|context| {
        if is_recorded(context) {
            noted(context, cache, keys);
        }
    });
}

#[cold]
fn noted(context: &Context, cache: &str, keys: usize) {
    let attributes = vec![
        KeyValue::new("perto.cache", cache.to_owned()),
        KeyValue::new("perto.tier", "l1"),
        KeyValue::new("perto.keys", i64::try_from(keys).unwrap_or(i64::MAX)),
    ];
    context.span().add_event("perto.hit", attributes);
}

#[inline]
fn is_recorded(context: &Context) -> bool {
    context.has_active_span() && context.span().span_context().is_sampled()
}

impl Trace {
    /// That of the caller.
    pub(crate) fn current() -> Self {
        Self(Context::map_current(|context| is_recorded(context).then(|| context.clone())))
    }

    /// A new one, if the application's sampler wants it.
    pub(crate) fn root() -> Self {
        Self(Some(Context::new()))
    }

    /// That of another instance; none where it is not recorded, or is none.
    ///
    /// <https://www.w3.org/TR/trace-context/#traceparent-header>
    pub(crate) fn remote(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if (version.len(), trace.len(), span.len(), flags.len()) != (2, 32, 16, 2) || version == "ff" {
            return None;
        }
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
        let origin = SpanContext::new(trace, span, flags, true, TraceState::NONE);
        let recorded = origin.is_valid() && origin.is_sampled();
        recorded.then(|| Self(Some(Context::new().with_remote_span_context(origin))))
    }

    /// A span of it.
    pub(crate) fn begin(&self, kind: Kind, name: Arguments<'_>) -> Span {
        let Some(parent) = &self.0 else { return Span(Self(None)) };
        let tracer = global::tracer("perto");
        let kind = match kind {
            Kind::Internal => SpanKind::Internal,
            Kind::Client => SpanKind::Client,
            Kind::Producer => SpanKind::Producer,
            Kind::Consumer => SpanKind::Consumer,
        };
        let name = name.as_str().map_or_else(|| name.to_string().into(), std::borrow::Cow::Borrowed);
        let span = tracer.build_with_context(tracer.span_builder(name).with_kind(kind), parent);
        let context = parent.with_span(span);
        Span(Self(is_recorded(&context).then_some(context)))
    }

    pub(crate) const fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Says of the span that it ends in so far that it has to do with another one.
    pub(crate) fn link(&self, origin: &Origin) {
        if let (Some(context), Some(origin)) = (&self.0, &origin.0) {
            context.span().add_link(origin.clone(), Vec::new());
        }
    }

    /// The span that it ends in so far.
    pub(crate) fn origin(&self) -> Origin {
        Origin(self.0.as_ref().map(|context| context.span().span_context().clone()))
    }

    /// Runs what may begin spans of its own, here.
    pub(crate) fn within<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        // Also what is not recorded goes on: whoever begins spans there must not take it for a new trace.
        work.with_context(self.0.clone().unwrap_or_else(Context::current))
    }
}

impl Span {
    /// For spans below it.
    pub(crate) fn trace(&self) -> Trace {
        self.0.clone()
    }

    pub(crate) fn text(&self, name: &'static str, value: &str) {
        self.set(|| KeyValue::new(name, value.to_owned()));
    }

    pub(crate) fn number(&self, name: &'static str, value: u64) {
        self.set(|| KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX)));
    }

    fn set(&self, attribute: impl FnOnce() -> KeyValue) {
        if let Some(context) = &self.0.0 {
            context.span().set_attribute(attribute());
        }
    }

    /// Says that it has to do with another one.
    pub(crate) fn link(&self, origin: &Origin) {
        self.0.link(origin);
    }

    pub(crate) fn failed(&self, error: &dyn Display) {
        if let Some(context) = &self.0.0 {
            context.span().set_status(Status::error(error.to_string()));
        }
    }

    /// For who goes on with it elsewhere.
    pub(crate) fn traceparent(&self) -> Option<String> {
        let span = self.0.0.as_ref()?.span().span_context().clone();
        Some(format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8()))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0.0 {
            context.span().end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_trace_that_is_recorded_is_gone_on_with() {
        let read = |text: &str| Trace::remote(text).map(|trace| trace.origin().0.unwrap());
        let origin = read("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        assert_eq!(origin.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(origin.is_remote());
        for text in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        ] {
            assert!(read(text).is_none(), "{text}");
        }
    }
}
