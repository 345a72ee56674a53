//! The description of the API against what a real worker answers.

use std::collections::BTreeSet;
use std::path::Path;

use cachekeeper::app::Worker;
use cachekeeper_testkit::servers::free_port;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Rig, wait_until};

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_description_of_the_api_is_what_the_code_says() {
    let text = format!("{:#}\n", cachekeeper::admin::openapi());
    if std::env::var_os("CACHEKEEPER_BLESS").is_some() {
        std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json"), &text).unwrap();
    }
    assert!(
        read("docs/openapi.json") == text,
        "docs/openapi.json differs; write it with CACHEKEEPER_BLESS=1 cargo nextest run the_description_of_the_api"
    );
}

/// Paths get into the router with their description only, and are in the table of docs/admin.md.
#[test]
fn no_path_of_the_api_is_without_its_description() {
    let mut sources = vec![read("src/admin.rs")];
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin")).unwrap().flatten()
    {
        if entry.path().extension().is_some_and(|ending| ending == "rs") {
            sources.push(std::fs::read_to_string(entry.path()).unwrap());
        }
    }
    let packed = |text: &String| text.split_whitespace().collect::<String>();
    for source in sources.iter().map(packed) {
        assert!(
            !source.contains(".route(\"/api") && !source.contains(".route(guard::"),
            "add it to the Routes"
        );
    }
    let (table, document) = (read("docs/admin.md"), cachekeeper::admin::openapi());
    for path in document["paths"].as_object().unwrap().keys() {
        let named = path.replace("{name}", "NAME");
        let short = named.replace("/api/v1/datasets/NAME/", "…/");
        assert!(table.contains(&named) || table.contains(&short), "docs/admin.md does not name {named}");
    }
}

/// Why a value is not what a schema says. Objects have the fields that it names and no others.
fn problem(value: &Value, schema: &Value, document: &Value, at: &str) -> Option<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let found = document.pointer(name.trim_start_matches('#')).unwrap_or_else(|| panic!("no {name}"));
        return problem(value, found, document, at);
    }
    for word in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[word].as_array() {
            let problems: Vec<String> =
                choices.iter().filter_map(|choice| problem(value, choice, document, at)).collect();
            return (problems.len() == choices.len()).then(|| problems.join(" or "));
        }
    }
    let is_of = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("an unknown type: {other}"),
    };
    let is_right_type = match &schema["type"] {
        Value::String(name) => is_of(name),
        Value::Array(names) => names.iter().any(|name| is_of(name.as_str().unwrap())),
        _ => true,
    };
    if !is_right_type {
        return Some(format!("{at}: {value} is no {}", schema["type"]));
    }
    let is_listed = schema["enum"].as_array().is_none_or(|listed| listed.contains(value));
    if !is_listed || schema.get("const").is_some_and(|only| only != value) {
        return Some(format!("{at}: {value} is none of {schema}"));
    }
    if let (Some(values), Some(items)) = (value.as_array(), schema.get("items")) {
        return values.iter().find_map(|one| problem(one, items, document, &format!("{at}[]")));
    }
    let fields = value.as_object()?;
    let required = schema["required"].as_array().into_iter().flatten();
    if let Some(missing) = required.filter_map(Value::as_str).find(|name| !fields.contains_key(*name)) {
        return Some(format!("{at}: {missing} is missing"));
    }
    let known = schema["properties"].as_object();
    let rest = schema.get("additionalProperties");
    fields.iter().find_map(|(name, field)| {
        let at = format!("{at}.{name}");
        match (known.and_then(|known| known.get(name)), rest) {
            (Some(schema), _) => problem(field, schema, document, &at),
            (None, Some(rest)) => problem(field, rest, document, &at),
            (None, None) if known.is_none() => None,
            (None, None) => Some(format!("{at} is not described")),
        }
    })
}

#[test]
fn what_is_not_described_is_found() {
    let schema =
        json!({ "type": "object", "required": ["a"], "properties": { "a": { "type": ["string", "null"] } } });
    let found = |value: Value| problem(&value, &schema, &Value::Null, "");
    assert_eq!(found(json!({ "a": null })), None);
    for wrong in [json!({}), json!({ "a": 1 }), json!({ "a": "", "b": 1 }), json!([])] {
        assert!(found(wrong.clone()).is_some(), "{wrong}");
    }
}

const TABLES: &str = "create table products (id int primary key, name text, price int);
    insert into products select n, 'product ' || n, n - 1 from generate_series(1, 5) n";

const SETTINGS: &str = r#"
    [writes]
    stream = "writes"
    [dataset.product]
    query = "select id, name, 100 / price as share from products"
    key = "product:{id}"
    tags = ["all"]
    warm = {}
    watch = [{ table = "products", key = { id = "id" } }]
    [dataset.product.write]
    statement = "update products set name = :name where id = :id"
"#;

/// A worker inside of this test.
struct Asked {
    document: Value,
    port: u16,
    /// What was asked for.
    seen: BTreeSet<(String, String)>,
}

impl Asked {
    async fn exchange(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let body = body.map(Value::to_string).unwrap_or_default();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        (head.split_whitespace().nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn get(&self, path: &str) -> Value {
        serde_json::from_str(&self.exchange("GET", path, None).await.1).unwrap()
    }

    fn described(&mut self, method: &str, path: &str) -> Value {
        self.seen.insert((method.to_owned(), path.to_owned()));
        let described = self.document["paths"][path][method].clone();
        assert!(described.is_object(), "{method} {path} is not described");
        described
    }

    /// Asks for a path, and holds the answer against its description.
    async fn ask(&mut self, method: &str, path: &str, query: &str, body: Option<Value>) -> Value {
        let described = self.described(method, path);
        if let Some(body) = &body {
            let schema = &described["requestBody"]["content"]["application/json"]["schema"];
            assert_eq!(problem(body, schema, &self.document, path), None);
        }
        for name in query.trim_start_matches('?').split('&').filter_map(|part| part.split_once('=')) {
            let parameters = described["parameters"].as_array().unwrap();
            assert!(parameters.iter().any(|one| one["name"] == name.0), "{path} takes no {}", name.0);
        }
        let address = format!("{}{query}", path.replace("{name}", "product"));
        let (code, text) = self.exchange(&method.to_uppercase(), &address, body.as_ref()).await;
        let answers = &described["responses"];
        let answer = answers.get(code.to_string()).unwrap_or(&answers["default"]);
        let schema = &answer["content"]["application/json"]["schema"];
        assert!(schema.is_object(), "{method} {address} answers {code}: {text}");
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{code}: {text}"));
        assert_eq!(problem(&value, schema, &self.document, path), None, "{method} {address}: {value:#}");
        value
    }
}

#[tokio::test]
async fn every_path_answers_as_it_is_described() {
    let rig = Rig::start(TABLES).await;
    let port = free_port().unwrap();
    let mut config = rig.config(SETTINGS);
    config.admin.listen = Some(format!("127.0.0.1:{port}"));
    let worker = Worker::start(config).await.unwrap();
    let mut api = Asked { document: cachekeeper::admin::openapi(), port, seen: BTreeSet::new() };
    wait_until("the worker has begun", async || {
        if TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            return Err("no listener".to_owned());
        }
        let now = api.get("/api/v1/now").await;
        if now["watermark_age_ms"].is_u64() { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
    // One command is rejected, one row has no entry.
    let mut command = redis::cmd("XADD");
    command.arg("writes").arg("*").arg(&["id", "c1", "dataset", "product"]);
    command.arg(&["params", r#"{"id": "no number", "name": "x"}"#]);
    let _: String = command.query_async(&mut rig.client().await).await.unwrap();
    rig.postgres.execute("update products set name = 'new'").await.unwrap();
    wait_until("there is something to tell", async || {
        let (letters, dataset) =
            (api.get("/api/v1/dead-letters").await, api.get("/api/v1/datasets/product").await);
        let has_all = letters["count"] == 1
            && dataset["rows_without_entry"] == 1
            && dataset["backfills"][0].is_object();
        if has_all { Ok(()) } else { Err(format!("{letters} {dataset}")) }
    })
    .await;

    let served = api.ask("get", "/api/v1/openapi.json", "", None).await;
    assert_eq!(served, api.document);
    for path in ["now", "machine", "settings", "actions", "status", "datasets", "datasets/{name}", "leases"] {
        api.ask("get", &format!("/api/v1/{path}"), "", None).await;
    }
    for path in ["relations", "lifetimes", "rows", "size"] {
        api.ask("get", &format!("/api/v1/datasets/{{name}}/{path}"), "", None).await;
    }
    let touches =
        api.ask("get", "/api/v1/touches", "?kind=change,failed&dataset=product&limit=9", None).await;
    assert!(!touches["touches"].as_array().unwrap().is_empty(), "{touches}");
    for key in ["product:2", "product:1", "product:77", "unknown"] {
        api.ask("get", "/api/v1/explain", &format!("?key={key}"), None).await;
    }
    api.ask("get", "/api/v1/watermark", "", None).await;
    let refused = api.ask("get", "/api/v1/watermark", "?token=none", None).await;
    assert!(refused["error"].is_string(), "{refused}");
    let keys = json!({ "keys": ["product:2", "product:1", "of:nobody"] });
    api.ask("post", "/api/v1/keys/refresh", "", Some(keys.clone())).await;
    api.ask("post", "/api/v1/keys/delete", "", Some(keys)).await;
    let letter = api.ask("get", "/api/v1/dead-letters", "", None).await["dead_letters"][0]["letter"].clone();
    let letters = json!({ "letters": [letter] });
    api.ask("post", "/api/v1/dead-letters/replay", "", Some(letters.clone())).await;
    api.ask("post", "/api/v1/dead-letters/discard", "", Some(letters)).await;
    for act in ["warm", "cancel", "pause", "resume"] {
        api.ask("post", &format!("/api/v1/datasets/{{name}}/{act}"), "", None).await;
    }
    api.ask("post", "/api/v1/log-level", "", Some(json!({ "level": "nonsense=nonsense=" }))).await;
    // A worker inside of a test takes no orders: the refusal is what is described.
    api.ask("post", "/api/v1/reload", "?dry_run=true", None).await;
    api.ask("post", "/api/v1/drain", "", None).await;
    live(&mut api).await;
    let all = api.document["paths"].as_object().unwrap().iter();
    let all = all.flat_map(|(path, methods)| {
        methods.as_object().unwrap().keys().map(|method| (method.clone(), path.clone()))
    });
    assert_eq!(api.seen, all.collect(), "not every path was asked for");
    worker.stop().await;
}

/// The first event of the stream.
async fn live(api: &mut Asked) {
    let path = "/api/v1/live";
    let schema =
        api.described("get", path)["responses"]["200"]["content"]["text/event-stream"]["x-event-data"]
            .clone();
    let mut stream = TcpStream::connect(("127.0.0.1", api.port)).await.unwrap();
    let request = format!("GET {path}?after=0 HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    while !reply.contains("\n\ndata") && !reply.ends_with("}\n\n") {
        let mut part = [0; 4096];
        let length = stream.read(&mut part).await.unwrap();
        assert_ne!(length, 0, "{reply}");
        reply.push_str(std::str::from_utf8(&part[..length]).unwrap());
    }
    let data = reply.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(problem(&data, &schema, &api.document, path), None, "{data}");
}
