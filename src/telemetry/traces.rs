//! Traces for a collector, where this is built with the feature `otlp`.

use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

#[cfg(feature = "otlp")]
static TRACES: std::sync::OnceLock<cachekeeper_otlp::Traces> = std::sync::OnceLock::new();

/// The layer of traces; none: nobody asks for them.
///
/// # Errors
/// What is wrong with the variables of the environment.
#[cfg(feature = "otlp")]
#[expect(clippy::disallowed_methods, reason = "the exporter reads the other variables by itself, too")]
pub(super) fn layer<S>() -> Result<Option<Box<dyn Layer<S> + Send + Sync>>, String>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    let variable = |name: &str| std::env::var(name).ok();
    let begun = cachekeeper_otlp::Traces::begin(env!("CARGO_PKG_VERSION"), variable)?;
    Ok(begun.map(|traces| TRACES.get_or_init(|| traces).layer().boxed()))
}

/// Without the feature there is none, whatever the environment says.
#[cfg(not(feature = "otlp"))]
#[expect(clippy::unnecessary_wraps, reason = "with the feature it may fail")]
pub(super) fn layer<S>() -> Result<Option<Box<dyn Layer<S> + Send + Sync>>, String>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    Ok(None)
}

/// Sends what is left.
pub(super) fn end() {
    #[cfg(feature = "otlp")]
    if let Some(traces) = TRACES.get() {
        traces.end();
    }
}
