//! Spans of requests and of statements, where traces are wanted.
//!
//! They are spans of `tracing` at its lowest level, which only the layer of the pipeline asks for: without it they are never
//! made. What is asked for is told by its route: ids, phones and keys stay out of traces.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

pub(crate) const TARGET: &str = "perto::trace";

/// Templates of paths, by their segments.
#[derive(Debug)]
pub(crate) struct Routes(Vec<Vec<String>>);

impl Routes {
    pub(crate) fn new<'a>(templates: impl Iterator<Item = &'a String>) -> Self {
        Self(templates.map(|path| path.split('/').map(str::to_owned).collect()).collect())
    }

    /// The one that a path is of; those that say more come first.
    fn find(&self, path: &str) -> Option<String> {
        let segments: Vec<&str> = path.split('/').collect();
        let is_variable = |segment: &str| segment.starts_with('{');
        let fits = |template: &&Vec<String>| {
            template.len() == segments.len()
                && template.iter().zip(&segments).all(|(each, given)| is_variable(each) || each == given)
        };
        let variables = |template: &&Vec<String>| template.iter().filter(|each| is_variable(each)).count();
        self.0.iter().filter(fits).min_by_key(variables).map(|template| template.join("/"))
    }
}

/// Goes on with the trace that the request names, if its caller is believed: a stranger must not decide what is sampled, nor
/// write into the traces of others.
///
/// <https://opentelemetry.io/docs/specs/semconv/http/http-spans/>
pub(crate) fn request(request: &Request, routes: &Arc<Routes>, believed: bool) -> Span {
    let span = tracing::trace_span!(
        target: TARGET,
        "request",
        otel.name = Empty,
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = known(request.method()),
        http.route = Empty,
        url.path = Empty,
        url.scheme = "http",
        http.response.status_code = Empty,
        error.r#type = Empty,
        perto.tier = Empty,
        perto.freshness = Empty,
    );
    if span.is_disabled() {
        return span;
    }
    let route = routes.find(request.uri().path());
    let name = match &route {
        Some(route) => format!("{} {route}", known(request.method())),
        None => known(request.method()).to_owned(),
    };
    span.record("otel.name", name);
    if let Some(route) = route {
        span.record("http.route", &route);
        span.record("url.path", route);
    }
    if !believed {
        return span;
    }
    let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
    if parent.span().span_context().is_valid() {
        drop(span.set_parent(parent));
    }
    span
}

/// What came of it.
pub(crate) fn answered(span: &Span, response: &Response) {
    if span.is_disabled() {
        return;
    }
    let status = response.status();
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
        span.record("error.type", status.as_str());
    }
    for (header, field) in [("perto-tier", "perto.tier"), ("perto-freshness", "perto.freshness")] {
        if let Some(said) = response.headers().get(header).and_then(|value| value.to_str().ok()) {
            span.record(field, said);
        }
    }
}

/// A statement, by its text: what is bound to it is not in there. None outside of a request.
///
/// <https://opentelemetry.io/docs/specs/semconv/database/postgresql/>
pub(crate) fn statement(sql: &str) -> Span {
    if Span::current().is_none() {
        return Span::none();
    }
    let operation = sql.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
    tracing::trace_span!(
        target: TARGET,
        "statement",
        otel.name = operation,
        otel.kind = "client",
        db.system.name = "postgresql",
        db.operation.name = operation,
        db.query.text = sql,
    )
}

/// The methods that there are: names are few, whatever a client sends.
pub(crate) fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(axum::http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_told_by_its_template() {
        let templates = ["/a/{x}", "/a/{x}/b/{y}", "/a/{x}/b/by/{y}", "/a/{x}/b/c"].map(str::to_owned);
        let routes = Routes::new(templates.iter());
        for (path, route) in [
            ("/a/7", Some("/a/{x}")),
            ("/a/7/b/9", Some("/a/{x}/b/{y}")),
            ("/a/7/b/c", Some("/a/{x}/b/c")),
            ("/a/7/b/by/+351912345678", Some("/a/{x}/b/by/{y}")),
            ("/a", None),
            ("/a/7/", None),
            ("", None),
        ] {
            assert_eq!(routes.find(path).as_deref(), route, "{path}");
        }
    }
}
