//! The paths of the API, each with what it is asked and what it answers: the router and the description of the API (`OpenAPI` 3.1) are
//! made of the same list, so no path is without its description.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::handler::Handler;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::guard;
use super::refusal::{WhyNot, refuse};
use super::shared::Shared;

/// Where the description is served.
const DOCUMENT: &str = "/api/v1/openapi.json";

/// A path of the API with its method.
pub(super) struct Operation {
    path: &'static str,
    is_action: bool,
    summary: &'static str,
    code: u16,
    answer: fn(&mut SchemaGenerator) -> Schema,
    query: Option<fn() -> Schema>,
    body: Option<fn(&mut SchemaGenerator) -> Schema>,
    is_stream: bool,
}

impl Operation {
    /// What somebody reads.
    pub(super) fn read<A: JsonSchema>(path: &'static str, summary: &'static str) -> Self {
        Self {
            path,
            is_action: false,
            summary,
            code: 200,
            answer: |generator| generator.subschema_for::<A>(),
            query: None,
            body: None,
            is_stream: false,
        }
    }

    /// What somebody has done.
    pub(super) fn act<A: JsonSchema>(path: &'static str, summary: &'static str) -> Self {
        Self { is_action: true, ..Self::read::<A>(path, summary) }
    }

    /// It takes this in its query.
    pub(super) fn asks<Q: JsonSchema>(mut self) -> Self {
        self.query = Some(|| {
            let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
            settings.for_deserialize().into_generator().into_root_schema_for::<Q>()
        });
        self
    }

    /// It takes this as its body.
    pub(super) fn takes<B: JsonSchema>(mut self) -> Self {
        self.body = Some(|generator| generator.subschema_for::<B>());
        self
    }

    /// It is done later.
    pub(super) fn accepted(self) -> Self {
        Self { code: 202, ..self }
    }

    /// Its answer has no end: events, whose data is what stands as its answer.
    pub(super) fn streams(self) -> Self {
        Self { is_stream: true, ..self }
    }
}

/// A body that says nothing is no longer than this.
const EMPTY_MAX: usize = 64;

async fn no_query(request: Request, next: Next) -> Response {
    match request.uri().query().filter(|query| !query.is_empty()) {
        Some(_) => {
            let error = format!("{} takes no parameters", request.uri().path());
            refuse(StatusCode::BAD_REQUEST, error)
        }
        None => next.run(request).await,
    }
}

async fn no_body(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, EMPTY_MAX).await;
    let is_empty = body.is_ok_and(|body| matches!(body.trim_ascii(), b"" | b"{}" | b"null"));
    if !is_empty {
        let error = format!("{} takes no body but {{}}", parts.uri.path());
        return refuse(StatusCode::BAD_REQUEST, error);
    }
    next.run(Request::from_parts(parts, Body::empty())).await
}

/// Paths, and what is told of them.
#[derive(Default)]
pub(super) struct Routes {
    router: Router<Shared>,
    operations: Vec<Operation>,
}

impl Routes {
    /// Adds a path.
    pub(super) fn add<H, T>(mut self, operation: Operation, handler: H) -> Self
    where
        H: Handler<T, Shared>,
        T: 'static,
    {
        let method = if operation.is_action { post(handler) } else { get(handler) };
        // What is not read is not passed over: whoever sends it means something by it.
        let method = if operation.query.is_none() { method.layer(from_fn(no_query)) } else { method };
        let method = if operation.is_action && operation.body.is_none() {
            method.layer(from_fn(no_body))
        } else {
            method
        };
        self.router = self.router.route(operation.path, method);
        self.operations.push(operation);
        self
    }

    /// All of them wait for their turn.
    pub(super) fn in_turn(mut self) -> Self {
        self.router = self.router.route_layer(from_fn_with_state(guard::turns(), guard::in_turn));
        self
    }

    pub(super) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.operations.extend(other.operations);
        self
    }

    /// The router, which serves the description too.
    pub(super) fn with_document(mut self) -> Router<Shared> {
        let document = self.document();
        let answer = move || std::future::ready(axum::Json(document.clone()));
        self.router = self.router.route(DOCUMENT, get(answer));
        self.router
    }

    /// The description of all paths.
    pub(super) fn document(&mut self) -> Value {
        let summary = "This description of the API";
        self.operations.push(Operation::read::<Map<String, Value>>(DOCUMENT, summary));
        let settings = SchemaSettings::draft2020_12()
            .with(|settings| settings.definitions_path = "/components/schemas".into());
        let mut answers = settings.clone().for_serialize().into_generator();
        let mut asked = settings.for_deserialize().into_generator();
        let refusal = answers.subschema_for::<WhyNot>();
        let mut paths: Map<String, Value> = Map::new();
        for operation in &self.operations {
            let method = if operation.is_action { "post" } else { "get" };
            let told = told(operation, &mut answers, &mut asked, &refusal);
            let path = paths.entry(operation.path).or_insert_with(|| json!({}));
            if let Some(path) = path.as_object_mut() {
                path.insert(method.to_owned(), told);
            }
        }
        paths.sort_keys();
        let mut schemas = answers.take_definitions(true);
        schemas.extend(asked.take_definitions(true));
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": "Cachekeeper",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "What a worker's admin listener answers. Whoever may read may ask for it; POST is an action, which needs the token that may act. \
                                Later versions may add fields.",
                "license": { "name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0" },
            },
            "security": [{ "bearer": [] }, { "basic": [] }, {}],
            "paths": paths,
            "components": {
                "securitySchemes": {
                    "bearer": { "type": "http", "scheme": "bearer", "description": "The token of [admin] token_file or read_token_file" },
                    "basic": { "type": "http", "scheme": "basic", "description": "The same token as the password of any user" },
                },
                "schemas": schemas,
            },
        })
    }
}

fn told(
    operation: &Operation,
    answers: &mut SchemaGenerator,
    asked: &mut SchemaGenerator,
    refusal: &Schema,
) -> Value {
    let answer = (operation.answer)(answers);
    let content = if operation.is_stream {
        json!({ "text/event-stream": { "schema": { "type": "string" }, "x-event-data": answer } })
    } else {
        json!({ "application/json": { "schema": answer } })
    };
    let description = if operation.code == 202 { "It will be done" } else { operation.summary };
    let mut told = json!({
        "operationId": id(operation),
        "summary": operation.summary,
        "responses": {
            operation.code.to_string(): { "description": description, "content": content },
            "default": {
                "description": "Why not",
                "content": { "application/json": { "schema": refusal } },
            },
        },
    });
    let parameters = parameters(operation);
    if let Some(told) = told.as_object_mut() {
        if !parameters.is_empty() {
            told.insert("parameters".to_owned(), Value::from(parameters));
        }
        // An action needs the type of its content also where it takes nothing.
        let body = operation.body.map(|body| json!({ "application/json": { "schema": body(asked) } }));
        let nothing = json!({ "application/json": { "schema": { "type": "object" } } });
        if operation.is_action {
            let body = json!({ "required": body.is_some(), "content": body.unwrap_or(nothing) });
            told.insert("requestBody".to_owned(), body);
        }
    }
    told
}

/// `/api/v1/datasets/{name}/warm` is `post_datasets_name_warm`.
fn id(operation: &Operation) -> String {
    let method = if operation.is_action { "post" } else { "get" };
    let path = operation.path.trim_start_matches("/api/v1/").trim_end_matches(".json");
    let path: String = path.replace(['{', '}'], "").replace(['/', '-'], "_");
    format!("{method}_{path}")
}

fn parameters(operation: &Operation) -> Vec<Value> {
    let names = operation.path.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let parameter =
        |name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } });
    let mut parameters: Vec<Value> = names.map(parameter).collect();
    let schema = operation.query.map(|query| query().to_value()).unwrap_or_default();
    let required = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    for (name, schema) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let mut schema = schema.clone();
        let description = schema.as_object_mut().and_then(|schema| schema.remove("description"));
        // Whoever has nothing to say leaves a parameter out.
        if let Some(Value::Array(names)) = schema.get_mut("type") {
            names.retain(|name| name != "null");
        }
        let is_required = required.contains(&Value::from(name.as_str()));
        parameters.push(json!({ "name": name, "in": "query", "required": is_required, "description": description.unwrap_or_default(), "schema": schema }));
    }
    parameters
}
