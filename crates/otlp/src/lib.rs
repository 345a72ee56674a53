//! Traces for a collector: the spans of the worker, sent by OTLP over HTTP in batches, configured by OpenTelemetry's own environment
//! variables (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>). Without an endpoint nothing is
//! sent and nothing costs anything.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const PROTOCOLS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
/// What is said of `service.name` where nobody says another.
const SERVICE: &str = "cachekeeper";
/// How long the end of the process waits for a collector to take the last spans.
const LAST_WITHIN: Duration = Duration::from_secs(2);

/// The spans on their way. Spans that come faster than the collector takes them are dropped: 2,048 wait, unless
/// `OTEL_BSP_MAX_QUEUE_SIZE` says otherwise.
#[derive(Debug, Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Begins to send; none: no endpoint is given, or `OTEL_SDK_DISABLED` is `true`.
    ///
    /// # Errors
    /// What is wrong with the variables, and how it would be right.
    pub fn begin(
        version: &'static str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, String> {
        let given = |name: &str| variable(name).filter(|text| !text.is_empty());
        let is_disabled = given("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
        let Some((name, endpoint)) = ENDPOINTS.into_iter().find_map(|name| Some((name, given(name)?))) else {
            return Ok(None);
        };
        if is_disabled {
            return Ok(None);
        }
        if !endpoint.starts_with("http://") {
            return Err(format!(
                "{name} = {endpoint:?} is no address for traces: they are sent over plain HTTP to a collector beside the worker, \
                 such as http://127.0.0.1:4318"
            ));
        }
        if let Some((name, protocol)) = PROTOCOLS.into_iter().find_map(|name| Some((name, given(name)?)))
            && protocol != "http/protobuf"
        {
            return Err(format!("{name} = {protocol:?} is not spoken: traces are sent as http/protobuf"));
        }
        // The exporter reads the endpoint, headers and limits from the environment by itself.
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .build()
            .map_err(|error| format!("traces cannot be sent to {endpoint}: {error}"))?;
        let mut resource = Resource::builder().with_attribute(KeyValue::new("service.version", version));
        let is_named = given("OTEL_SERVICE_NAME").is_some()
            || given("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|text| text.contains("service.name="));
        if !is_named {
            resource = resource.with_service_name(SERVICE);
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        Ok(Some(Self { provider }))
    }

    /// The layer that makes spans of Cachekeeper to traces.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
    {
        let tracer = self.provider.tracer(SERVICE);
        // Those of libraries would tell of the sending itself, and events are log lines.
        let is_ours = filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with(SERVICE));
        tracing_opentelemetry::layer().with_tracer(tracer).with_filter(is_ours)
    }

    /// Sends what is left, within a limit.
    pub fn end(&self) {
        // Whoever does not take the last spans does not keep the process.
        drop(self.provider.shutdown_with_timeout(LAST_WITHIN));
    }
}
