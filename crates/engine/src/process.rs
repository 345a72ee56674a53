//! What the operating system knows of this process, under the names that every Prometheus client uses. From `/proc`: elsewhere there
//! are no such numbers.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::metrics::Description;

/// Linux counts time for processes in hundredths of a second, on every machine that Rust builds for.
const TICKS_A_SECOND: f64 = 100.0;

/// The metrics of the process, for `/metrics` of the worker. An application has its own.
#[must_use]
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Process));
    registry
}

/// The most files that this process may open; none: not known, or no limit.
#[must_use]
pub fn open_files_limit() -> Option<usize> {
    open_files_of(&read("/proc/self/limits")?)
}

fn open_files_of(limits: &str) -> Option<usize> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[derive(Debug)]
struct Process;

/// A number, which is a counter where it only grows.
struct Known {
    name: &'static str,
    help: &'static str,
    value: Option<f64>,
    is_counter: bool,
}

const CPU: (&str, &str) = ("process_cpu_seconds", "Processor time of the process, of users and system");
const RESIDENT: (&str, &str) = ("process_resident_memory_bytes", "Memory of the process in the machine");
const VIRTUAL: (&str, &str) = ("process_virtual_memory_bytes", "Address space of the process");
const OPEN_FILES: (&str, &str) = ("process_open_fds", "Open files and sockets of the process");
const MOST_FILES: (&str, &str) = ("process_max_fds", "Most files and sockets that the process may open");
const STARTED: (&str, &str) = ("process_start_time_seconds", "When the process started");

/// For the table of metrics.
pub(crate) fn descriptions() -> Vec<Description> {
    let gauges = [RESIDENT, VIRTUAL, OPEN_FILES, MOST_FILES, STARTED];
    let gauge = |(name, help)| Description { name, kind: "gauge", labels: &[], help };
    let cpu = Description { name: CPU.0, kind: "counter", labels: &[], help: CPU.1 };
    std::iter::once(cpu).chain(gauges.map(gauge)).collect()
}

fn numbers() -> Vec<Known> {
    let stat = read("/proc/self/stat");
    // The name of the program, in brackets, may hold anything.
    let fields: Vec<f64> = stat
        .as_deref()
        .and_then(|stat| stat.rsplit_once(')'))
        .map(|(_, fields)| fields.split_whitespace().map(|field| field.parse().unwrap_or(f64::NAN)).collect())
        .unwrap_or_default();
    // Numbered from 1 in proc(5), and the first two are gone.
    let field = |number: usize| fields.get(number - 3).copied().filter(|value| value.is_finite());
    let status = read("/proc/self/status");
    let memory = |name| status.as_deref().and_then(|status| kilobytes(status, name));
    let booted = read("/proc/stat").and_then(|stat| {
        stat.lines().find_map(|line| line.strip_prefix("btime ")).and_then(|at| at.trim().parse::<f64>().ok())
    });
    let open_files = std::fs::read_dir("/proc/self/fd").ok().map(|files| as_f64(files.count()));
    let gauge = |(name, help), value| Known { name, help, value, is_counter: false };
    let cpu = field(14).zip(field(15)).map(|(user, system)| (user + system) / TICKS_A_SECOND);
    vec![
        Known { name: CPU.0, help: CPU.1, value: cpu, is_counter: true },
        gauge(RESIDENT, memory("VmRSS:")),
        gauge(VIRTUAL, memory("VmSize:")),
        gauge(OPEN_FILES, open_files),
        gauge(MOST_FILES, open_files_limit().map(as_f64)),
        gauge(STARTED, booted.zip(field(22)).map(|(booted, ticks)| booted + ticks / TICKS_A_SECOND)),
    ]
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Known { name, help, value, is_counter } in numbers() {
            let Some(value) = value else { continue };
            if is_counter {
                let counter = ConstCounter::new(value);
                counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
            } else {
                let gauge = ConstGauge::new(value);
                gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
            }
        }
        Ok(())
    }
}

fn kilobytes(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<f64>().ok().map(|kilobytes| kilobytes * 1024.0)
}

fn as_f64(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::from(u32::MAX), f64::from)
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// This machine's clock, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_without_a_number_are_none() {
        let line =
            |soft: &str| format!("Limit  Soft Hard\nMax open files            {soft}   4096   files\n");
        assert_eq!(open_files_of(&line("1024")), Some(1024));
        assert_eq!(open_files_of(&line("unlimited")), None);
        assert_eq!(open_files_of(""), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn every_number_is_known_here() {
        for Known { name, value, .. } in numbers() {
            // Limits may be none.
            assert!(value.is_some_and(|value| 0.0 <= value) || name == MOST_FILES.0, "{name}");
        }
        let names: Vec<&str> = descriptions().iter().map(|one| one.name).collect();
        assert_eq!(names, numbers().iter().map(|one| one.name).collect::<Vec<_>>());
    }
}
