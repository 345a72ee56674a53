//! What the nodes of a cluster say of it, read from `CLUSTER NODES`.

use super::endpoint::Address;
use cachekeeper_protocol::cluster_slot::ClusterSlot;
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;

/// Which master serves which cluster slots, as one node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClusterMap {
    /// The masters that serve any, in the order of their ids.
    pub masters: Vec<ClusterNode>,
    /// The newest configuration of a master: of several maps the one with the highest counts.
    pub config_epoch: u64,
    /// The cluster slots that the node shows as moving to or from itself.
    pub moving: ClusterSlotSet,
}

/// A master of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNode {
    /// Its id.
    pub id: String,
    /// Its host and port.
    pub address: Address,
    /// The cluster slots that it serves.
    pub serves: ClusterSlotSet,
}

impl ClusterMap {
    /// Reads what the node at this address has said. Lines that are not understood are passed over.
    pub(super) fn parse(text: &str, asked: &Address, is_tls: bool) -> Self {
        let mut map = Self::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(id), Some(place), Some(flags)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let config_epoch = words.nth(3).and_then(|epoch| epoch.parse().ok()).unwrap_or_default();
            let (mut serves, mut moving) = (ClusterSlotSet::default(), Vec::new());
            for word in words.skip(1) {
                match word.strip_prefix('[') {
                    None => serves = serves.or(&word.parse().unwrap_or_default()),
                    // `[93->-…]` to another node, `[93-<-…]` from one.
                    Some(rest) => moving.extend(rest.split('-').next().and_then(number)),
                }
            }
            moving.into_iter().for_each(|slot| map.moving.insert(slot));
            let is_master = flags.split(',').any(|flag| flag == "master");
            if let Some(address) = address(place, asked, is_tls).filter(|_| is_master && !serves.is_empty()) {
                map.config_epoch = map.config_epoch.max(config_epoch);
                map.masters.push(ClusterNode { id: id.to_owned(), address, serves });
            }
        }
        map.masters.sort_by(|one, other| one.id.cmp(&other.id));
        map
    }

    /// The master that serves a cluster slot; none: nobody does.
    #[must_use]
    pub fn master_of(&self, slot: ClusterSlot) -> Option<&ClusterNode> {
        self.masters.iter().find(|node| node.serves.contains(slot))
    }

    /// The cluster slots that any master serves.
    #[must_use]
    pub fn served(&self) -> ClusterSlotSet {
        self.masters.iter().fold(ClusterSlotSet::default(), |served, node| served.or(&node.serves))
    }
}

fn number(text: &str) -> Option<ClusterSlot> {
    text.parse().ok().and_then(ClusterSlot::new)
}

/// Host and port of a node: `host:port@bus,hostname,…`. Certificates are for names, where nodes tell any.
fn address(place: &str, asked: &Address, is_tls: bool) -> Option<Address> {
    let mut parts = place.split(',');
    let (host, port) = parts.next()?.split('@').next()?.rsplit_once(':')?;
    let name = parts.next().filter(|name| is_tls && !name.is_empty() && !name.contains('='));
    // A node that has met no other one does not know its own address.
    let host = name.unwrap_or(if host.is_empty() { &asked.0 } else { host });
    Some((host.to_owned(), port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nodes_say_is_read() {
        let text = "bb 10.0.0.2:7002@17002,two.example,shard-id=1 master - 0 1 3 connected 5461-10922 5\n\
                    aa 10.0.0.1:7001@17001,one.example myself,master - 0 0 2 connected 0-4 6-5460 [7->-bb] [9-<-cc]\n\
                    cc :0@0 master,noaddr - 0 0 9 disconnected\n\
                    dd 10.0.0.4:7004@17004 slave bb 0 0 3 connected\n\
                    ee ::1:7005@17005 master,fail - 0 0 4 connected 10923-16383\n";
        let asked = ("seed".to_owned(), 7001);
        let map = ClusterMap::parse(text, &asked, false);
        let shown: Vec<_> =
            map.masters.iter().map(|node| (node.id.as_str(), node.address.0.as_str())).collect();
        assert_eq!(shown, [("aa", "10.0.0.1"), ("bb", "10.0.0.2"), ("ee", "::1")]);
        assert_eq!((map.config_epoch, map.moving.to_string()), (4, "7,9".to_owned()));
        assert_eq!(map.served(), ClusterSlotSet::all());
        let five = ClusterSlot::new(5).and_then(|slot| map.master_of(slot)).map(|node| node.id.as_str());
        assert_eq!(five, Some("bb"));
        let named = ClusterMap::parse(text, &asked, true);
        let names: Vec<_> = named.masters.iter().map(|node| node.address.0.as_str()).collect();
        assert_eq!(names, ["one.example", "two.example", "::1"]);
        let alone = ClusterMap::parse("aa :7001@17001 myself,master - 0 0 0 connected 0", &asked, false);
        assert_eq!(alone.masters.first().map(|node| node.address.clone()), Some(asked));
    }
}
