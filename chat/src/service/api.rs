//! The API's description, made from the handlers, and a page to try it. What all routes have in common is said here once.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::Path;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{Router, get};
use serde_json::{Value, json};
use utoipa::openapi::OpenApi;
use utoipa::{OpenApi as _, PartialSchema};
use utoipa_swagger_ui::Config;

use super::Service;
use super::problem::{Document, Problem};

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Perto",
        description = "The caches of a customer-chat product. Writes and reads answer with `perto-token`; a read \
                       that brings it as `perto-at-least` is no older, on any instance. An admin, and anybody where no keys are \
                       configured, may say `perto-company` to act for one company."
    ),
    tags(
        (name = "chats", description = "Messages and tool results. A chat begins with what is first written to it."),
        (name = "companies"),
        (name = "users"),
        (name = "contacts"),
        (name = "cache", description = "For admins.")
    )
)]
struct Description;

/// What handlers don't say of themselves.
pub(super) fn base() -> OpenApi {
    Description::openapi()
}

/// `/openapi.json`, and a page to try it that needs no internet.
pub(super) fn routes(api: &OpenApi) -> Router<Arc<Service>> {
    let document = Bytes::from(complete(api).to_string());
    let config =
        Arc::new(Config::from("/openapi.json").try_it_out_enabled(true).persist_authorization(false));
    let page = move |path: String| {
        let config = Arc::clone(&config);
        async move { asset(&path, config) }
    };
    let index = page.clone();
    Router::new()
        .route("/openapi.json", get(async move || ([(CONTENT_TYPE, "application/json")], document)))
        .route("/docs", get(async || Redirect::permanent("/docs/")))
        .route("/docs/", get(move || index("index.html".to_owned())))
        .route("/docs/{*path}", get(move |Path(path): Path<String>| page(path)))
}

fn asset(path: &str, config: Arc<Config<'static>>) -> Response {
    match utoipa_swagger_ui::serve(path, config) {
        Ok(Some(file)) => {
            let coding = file.gzpipped.then_some([(CONTENT_ENCODING, "gzip")]);
            // Strangers may ask for these: they are sent from where the program has them.
            let bytes = match file.bytes {
                Cow::Borrowed(bytes) => Bytes::from_static(bytes),
                Cow::Owned(bytes) => bytes.into(),
            };
            ([(CONTENT_TYPE, file.content_type)], coding, bytes).into_response()
        }
        Ok(None) => Problem::not_found("there is no such page").into_response(),
        Err(error) => Problem::internal(&*error).into_response(),
    }
}

/// Adds to each operation what the layers around the handlers do.
fn complete(api: &OpenApi) -> Value {
    let mut document = serde_json::to_value(api).unwrap_or_default();
    document["components"]["schemas"]["Problem"] =
        serde_json::to_value(Document::schema()).unwrap_or_default();
    document["components"]["securitySchemes"] = json!({
        "key": { "type": "http", "scheme": "bearer", "description": "An API key of a company, or the admin's" }
    });
    document["security"] = json!([{ "key": [] }]);
    for (path, item) in document["paths"].as_object_mut().into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            // Handlers of several resources have one name.
            let name = path.trim_start_matches("/api/v1").replace(['{', '}'], "").replace('/', "-");
            operation["operationId"] = format!("{method}{name}").into();
            describe(path, method, operation);
        }
    }
    document
}

fn describe(path: &str, method: &str, operation: &mut Value) {
    let text = |what: &str| json!({ "description": what, "schema": { "type": "string" } });
    let takes = |header: &str| {
        let parameters = operation["parameters"].as_array();
        parameters.into_iter().flatten().any(|parameter| parameter["name"] == header)
    };
    let (tagged, composed) = (takes("if-none-match") && method == "get", takes("perto-at-least"));
    // The others write nothing that is cached, or not yet.
    let writes = !["preload", "imports", "metrics"].iter().any(|part| path.contains(part));
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    for (status, response) in &mut *responses {
        if !status.starts_with('2') {
            continue;
        }
        if tagged || composed {
            response["headers"]["perto-tier"] = text("Where it came from: `l1`, `l2` or `load`");
            response["headers"]["perto-freshness"] =
                text("`fresh`; else it may miss writes: `unverified`, `stale`");
            response["headers"]["cache-status"] = text(
                "RFC 9211: `perto; hit; detail=l1`. Of what is stale while its successor is loaded, `ttl` says for how long. \
                 `detail` names tiers that are switched off or read-only, too",
            );
            response["headers"]["perto-token"] =
                text("Of this answer, for `perto-at-least`. Not where nobody knows how new it is");
        }
        if tagged {
            response["headers"]["etag"] = text("Of this body, on every instance");
        }
        if method != "get" && !composed && writes {
            response["headers"]["perto-token"] = text("Of this write, for `perto-at-least`");
        }
    }
    if tagged {
        responses.insert("304".to_owned(), json!({ "description": "The client has it already" }));
    }
    let problem =
        json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
    responses
        .insert("default".to_owned(), json!({ "description": "A problem (RFC 9457)", "content": problem }));
}
