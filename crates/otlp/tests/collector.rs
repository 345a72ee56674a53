//! What a collector is sent, and what is refused before.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test, one part of it in a process of its own"
)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use cachekeeper_otlp::Traces;
use tracing_subscriber::layer::SubscriberExt;

/// Takes one request after the other, and hands over their heads and bodies.
fn collector() -> (u16, mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = Vec::new();
            let mut byte = [0];
            while !bytes.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                bytes.push(byte[0]);
            }
            let head = String::from_utf8(bytes).unwrap();
            let length = head
                .to_lowercase()
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let mut body = vec![0; length.unwrap()];
            stream.read_exact(&mut body).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
            if sender.send((head, body)).is_err() {
                return;
            }
        }
    });
    (port, requests)
}

fn holds(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|part| part == text.as_bytes())
}

/// One test, because the exporter reads the environment of the process.
#[test]
fn spans_of_cachekeeper_reach_the_collector() {
    let (port, requests) = collector();
    let endpoint = format!("http://127.0.0.1:{port}");
    // Another process, whose environment is its own.
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "in_a_process_of_its_own", "--nocapture"])
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
    let output = child.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (head, body) = requests.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(head.starts_with("POST /v1/traces "), "{head}");
    for text in
        ["cachekeeper", "service.version", "9.9.9", "load of the test", "dataset", "product", "part of it"]
    {
        assert!(holds(&body, text), "{text} is not told: {}", String::from_utf8_lossy(&body));
    }
    assert!(!holds(&body, "of a library") && !holds(&body, "only a log line"));
}

#[test]
fn in_a_process_of_its_own() {
    let variable = |name: &str| std::env::var(name).ok();
    let Some(traces) = Traces::begin("9.9.9", variable).unwrap() else { return };
    let subscriber = tracing_subscriber::registry().with(traces.layer());
    tracing::subscriber::with_default(subscriber, || {
        tracing::debug_span!(target: "cachekeeper_engine::load", "load of the test", dataset = "product")
            .in_scope(|| {
                tracing::debug_span!(target: "cachekeeper_engine::load", "part of it").in_scope(|| ());
                tracing::info_span!(target: "hyper", "of a library").in_scope(|| ());
                tracing::info!(target: "cachekeeper", "only a log line");
            });
    });
    traces.end();
}

#[test]
fn without_an_endpoint_nothing_begins_and_a_wrong_one_is_named() {
    let with = |pairs: &'static [(&str, &str)]| {
        Traces::begin("1", move |name| {
            pairs.iter().find(|(given, _)| *given == name).map(|(_, text)| (*text).to_owned())
        })
    };
    assert!(with(&[]).unwrap().is_none());
    assert!(with(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).unwrap().is_none());
    let disabled: &[_] =
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"), ("OTEL_SDK_DISABLED", "TRUE")];
    assert!(with(disabled).unwrap().is_none());
    let refused = with(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector:4318")]).unwrap_err();
    assert!(
        refused.contains("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") && refused.contains("http://127.0.0.1:4318")
    );
    let protocol: &[_] =
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
    assert!(with(protocol).unwrap_err().contains("http/protobuf"));
}
