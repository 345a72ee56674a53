//! The texts of `/metrics`: as `OpenMetrics`, and of it in Prometheus's older format, which `promtool` and people's eyes read.

use std::collections::HashMap;

/// The same without braces that hold no labels, so that a metric looks alike whether or not it may be absent.
pub(super) fn without_empty_labels(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.split_inclusive('\n') {
        // The first brace of a sample begins its labels, whatever their values hold.
        match line.split_once('{').map(|(name, rest)| (name, rest.strip_prefix('}'))) {
            Some((name, Some(value))) if !line.starts_with('#') => {
                text.push_str(name);
                text.push_str(value);
            }
            _ => text.push_str(line),
        }
    }
    text
}

/// The same with the samples of one metric together, each described once, where several registries have metrics of the same names.
pub(super) fn grouped(open_metrics: &str) -> String {
    let mut order: Vec<&str> = Vec::new();
    let mut metrics: HashMap<&str, (Vec<&str>, Vec<&str>)> = HashMap::new();
    let (mut name, mut is_first) = ("", true);
    for line in open_metrics.lines().filter(|line| !line.starts_with("# EOF")) {
        match line.strip_prefix("# ").map(|rest| rest.splitn(3, ' ')) {
            Some(mut words) => {
                let described = words.nth(1).unwrap_or_default();
                if described != name {
                    is_first = !metrics.contains_key(described);
                    name = described;
                }
                if is_first {
                    if !metrics.contains_key(name) {
                        order.push(name);
                    }
                    metrics.entry(name).or_default().0.push(line);
                }
            }
            None => metrics.entry(name).or_default().1.push(line),
        }
    }
    let lines = order.iter().filter_map(|name| metrics.get(name));
    let mut text = String::with_capacity(open_metrics.len());
    for line in lines.flat_map(|(described, samples)| described.iter().chain(samples)) {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str("# EOF\n");
    text
}

/// The same metrics in the older format: a counter is described under the name that its samples have.
pub(super) fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    // The description of a metric comes before its type, and its name depends on the type.
    let mut help: Option<(&str, &str)> = None;
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|typed| typed.split_once(' '))
        {
            let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
            if let Some((_, help)) = help.take() {
                text.push_str(&format!("# HELP {name} {help}\n"));
            }
            text.push_str(&format!("# TYPE {name} {kind}\n"));
        } else if !line.starts_with("# EOF") && !line.starts_with("# UNIT ") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{classic, grouped, without_empty_labels};

    #[test]
    fn a_metric_of_several_registries_is_described_once() {
        let one = "# HELP a Age.\n# TYPE a gauge\na 1\n# HELP b Bytes.\n# TYPE b gauge\nb 2\n";
        let other = "# HELP a Age.\n# TYPE a gauge\na{shard=\"1\"} 3\n# HELP c Calls.\n# TYPE c gauge\n";
        let expected = "# HELP a Age.\n# TYPE a gauge\na 1\na{shard=\"1\"} 3\n# HELP b Bytes.\n# TYPE b gauge\nb 2\n\
                        # HELP c Calls.\n# TYPE c gauge\n# EOF\n";
        assert_eq!(grouped(&format!("{one}{other}# EOF\n")), expected);
    }

    #[test]
    fn only_braces_without_labels_go() {
        let text = "# HELP a Of {} or so.\na{} 1\nb{x=\"{} \"} 2\nc 3\n";
        assert_eq!(without_empty_labels(text), "# HELP a Of {} or so.\na 1\nb{x=\"{} \"} 2\nc 3\n");
    }

    #[test]
    fn counters_are_described_by_the_names_of_their_samples() {
        let newer = "# HELP a_changes Changes.\n# TYPE a_changes counter\na_changes_total{x=\"# EOF\"} 1\n\
                     # HELP a_age Age.\n# TYPE a_age gauge\na_age 0.5\n# EOF\n";
        let older = "# HELP a_changes_total Changes.\n# TYPE a_changes_total counter\na_changes_total{x=\"# EOF\"} 1\n\
                     # HELP a_age Age.\n# TYPE a_age gauge\na_age 0.5\n";
        assert_eq!(classic(newer), older);
    }
}
