//! Hosts and ports as addresses write them.

/// Host and port as they stand in a URL.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// The hosts of a URL with their ports; else which one is wrong, and at which byte.
pub(super) fn hosts(authority: &str, default_port: u16) -> Result<Vec<(String, u16)>, (usize, usize)> {
    let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
    let mut nodes = Vec::new();
    let mut at = authority.len() - hosts.len();
    for (position, host) in hosts.split(',').enumerate() {
        nodes.push(node(host, default_port).ok_or((position + 1, at))?);
        at += host.len() + 1;
    }
    Ok(nodes)
}

fn node(text: &str, default_port: u16) -> Option<(String, u16)> {
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let (host, port) = match bracketed {
        Some((host, rest)) => (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) }),
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let port = port.map_or(Some(default_port), |port| port.parse().ok().filter(|port| *port != 0))?;
    let is_host = url::Url::parse(&format!("redis://{}", authority(host, port))).is_ok();
    (is_host && !host.is_empty()).then(|| (host.to_owned(), port))
}
