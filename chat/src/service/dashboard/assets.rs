//! The page and its files, in the binary: from here and from nowhere else, which the browser is told too.

use std::sync::Arc;
use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY};
use axum::http::header::{CONTENT_SECURITY_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{Router, get};
use sha2::{Digest, Sha256};

use crate::service::Service;
use crate::service::problem::Problem;

/// Scripts, styles and pictures of this origin, requests to it, and nothing else; no text becomes markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! files {
    ($($kind:ident $name:literal),* $(,)?) => {
        &[$(File { name: $name, kind: $kind, text: include_str!(concat!("../../../web/", $name)) }),*]
    };
}

struct File {
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

const PAGE: &str = "index.html";
const FILES: &[File] = files![
    HTML "index.html",
    CSS "style.css",
    SVG "icon.svg",
    SCRIPT "dashboard.js",
    SCRIPT "stream.js",
    SCRIPT "history.js",
    SCRIPT "format.js",
    SCRIPT "language.js",
    SCRIPT "pt.js",
    SCRIPT "charts.js",
    SCRIPT "fleet.js",
    SCRIPT "caches.js",
    SCRIPT "alerts.js",
    SCRIPT "actions.js",
    SCRIPT "switches.js",
    SCRIPT "vendor/uPlot.iife.min.js",
    CSS "vendor/uPlot.min.css",
];

/// Tags in the order of the files.
static TAGS: LazyLock<Vec<String>> =
    LazyLock::new(|| FILES.iter().map(|file| format!("\"{}\"", digest([file.text]))).collect());

/// Of all files: a page that was loaded from another build can tell.
pub(super) static BUILD: LazyLock<String> = LazyLock::new(|| digest(FILES.iter().map(|file| file.text)));

fn digest(texts: impl IntoIterator<Item = &'static str>) -> String {
    let mut hash = Sha256::new();
    texts.into_iter().for_each(|text| hash.update(text));
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// `/` and `/web/…`.
pub(in crate::service) fn routes() -> Router<Arc<Service>> {
    Router::new().route("/", get(async |headers: HeaderMap| serve(PAGE, &headers))).route(
        "/web/{*name}",
        get(async |Path(name): Path<String>, headers: HeaderMap| serve(&name, &headers)),
    )
}

fn serve(name: &str, headers: &HeaderMap) -> Response {
    let Some((file, tag)) = FILES.iter().zip(TAGS.iter()).find(|(file, _)| file.name == name) else {
        return Problem::not_found("there is no such file").into_response();
    };
    let same: [(HeaderName, &str); 7] = [
        (ETAG, tag),
        // Kept, and asked for each time: no page may meet the files of another build.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    let known = headers.get(IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    if known.is_some_and(|tags| tags.split(',').any(|one| one.trim().trim_start_matches("W/") == tag)) {
        return (StatusCode::NOT_MODIFIED, same).into_response();
    }
    (same, [(CONTENT_TYPE, file.kind)], file.text).into_response()
}
