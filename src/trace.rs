//! Spans of `OpenTelemetry`, for reads and writes that are part of a trace that is recorded.
//!
//! Perto begins no traces of its own, save for what the log had to repair; it adds to those of the application. So without one,
//! or where it is not sampled, nothing here allocates or records; and without the feature `otel` nothing here is anything.
//! No span tells a key.

#[cfg(feature = "otel")]
mod recorded;
#[cfg(feature = "otel")]
pub(crate) use recorded::{Origin, Span, Trace, hits};

#[cfg(not(feature = "otel"))]
mod nothing;
#[cfg(not(feature = "otel"))]
pub(crate) use nothing::{Origin, Span, Trace, hits};

/// How a span stands to those on other machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Internal,
    /// It waits for a server.
    Client,
    /// It sends what others take up later.
    Producer,
    /// It takes up what was sent.
    Consumer,
}
