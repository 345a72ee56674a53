//! Nodes that are parted from each other, as by a network that is broken, while clients still reach them.

use std::net::{IpAddr, Ipv4Addr};

use super::super::{ServerError, failed, free_port};
use super::{Cluster, start_node_with};
use crate::proxy::Proxy;

impl Cluster {
    /// As [`Self::start`], with nodes that can be parted from each other ([`Self::part`]).
    pub async fn start_divisible(
        masters: usize,
        replicas: usize,
        arguments: &[&str],
    ) -> Result<Self, ServerError> {
        let mut cluster = Self { nodes: Vec::new(), buses: Vec::new() };
        for _ in 0..masters * (1 + replicas) {
            cluster.add_divisible(arguments).await?;
        }
        cluster.begin(masters).await?;
        Ok(cluster)
    }

    pub(super) async fn add_divisible(&mut self, arguments: &[&str]) -> Result<(), ServerError> {
        let bus = free_port()?;
        let before = Proxy::start(bus).await.map_err(|error| failed("starting a proxy", error))?;
        let (bus, announced) = (bus.to_string(), before.port().to_string());
        let source = source(self.nodes.len()).to_string();
        let mut all = vec!["--cluster-port", &bus, "--cluster-announce-bus-port", &announced];
        // It listens to this machine alone, but its replica comes from another address of it.
        all.extend(["--bind-source-addr", &source, "--protected-mode", "no"]);
        all.extend(arguments);
        self.nodes.push(start_node_with(&all).await?);
        self.buses.push(before);
        Ok(())
    }

    /// Parts a node from all others: nothing that they say to each other as nodes arrives any more. Clients still come to it, and so
    /// does its replica.
    pub fn part(&self, position: usize) {
        self.divide(position, true);
    }

    /// What [`Self::part`] has parted is together again.
    pub fn unite(&self, position: usize) {
        self.divide(position, false);
    }

    fn divide(&self, apart: usize, is_apart: bool) {
        for (position, bus) in self.buses.iter().enumerate() {
            let others = (0..self.buses.len()).filter(|other| position == apart || *other == apart);
            others.for_each(|other| bus.hold_from(source(other), is_apart));
        }
    }
}

/// The address from which a node that can be parted speaks to others, so that its connections can be told apart.
fn source(position: usize) -> IpAddr {
    let last = u8::try_from(position + 1).unwrap_or(u8::MAX);
    IpAddr::V4(Ipv4Addr::new(127, 0, 1, last))
}
