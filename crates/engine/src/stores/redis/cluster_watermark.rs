//! The watermark of a cluster as a whole: the least of those of its shards, where they all know the same servers (R20).

use std::collections::BTreeSet;

use futures_util::future::try_join_all;

use super::advance::parse;
use super::{CacheError, Cluster, ClusterMap, PlacedShard, Watermark};
use cachekeeper_protocol::cluster_slot_set::ClusterSlotSet;
use cachekeeper_protocol::stamp::{Snapshot, Stamp};

/// The watermark of one shard, with the run of the server that it was read from.
struct OfShard {
    node: String,
    run: String,
    watermark: Watermark,
}

impl Cluster {
    /// What every entry in the cluster slots that it covers is at least as fresh as; none: some shard has none, or they do not know the
    /// same servers and the same database, as after a failover, until all have moved on.
    ///
    /// # Errors
    /// [`CacheError`] where a server does not answer.
    pub async fn watermark(
        &self,
        map: &ClusterMap,
        shards: &[PlacedShard],
    ) -> Result<Option<Watermark>, CacheError> {
        let read = try_join_all(shards.iter().map(|shard| self.watermark_of(shard))).await?;
        let read: Vec<OfShard> = read.into_iter().flatten().collect();
        Ok(if read.len() == map.masters.len() { least(read) } else { None })
    }

    async fn watermark_of(&self, shard: &PlacedShard) -> Result<Option<OfShard>, CacheError> {
        let redis = self.shard(&shard.node.address, shard.number)?;
        let mut pipeline = redis::pipe();
        // At one moment: a watermark counts in the run of the server that it names.
        pipeline.atomic().cmd("INFO").arg("server").cmd("GET").arg(&redis.keys.metadata().watermark);
        let mut replies = redis.pipeline("read the watermark", &pipeline, 2).await?;
        let told: String = replies.next()?;
        let text: Option<Vec<u8>> = replies.next()?;
        let run = told.lines().find_map(|line| line.strip_prefix("run_id:")).unwrap_or_default().to_owned();
        let watermark = text.map(|text| parse(&text)).transpose()?;
        Ok(watermark.map(|watermark| OfShard { node: shard.node.id.clone(), run, watermark }))
    }
}

fn least(read: Vec<OfShard>) -> Option<Watermark> {
    let runs = read.first()?.watermark.runs.clone()?;
    let incarnation = read.first()?.watermark.incarnation.clone();
    let is_in_step = |one: &OfShard| {
        one.watermark.runs.as_ref() == Some(&runs)
            && one.watermark.incarnation == incarnation
            && one.watermark.node.as_ref() == Some(&one.node)
            && runs.contains(&format!("{} {}", one.node, one.run))
    };
    if !read.iter().all(is_in_step) {
        return None;
    }
    let (mut not_covered, mut covers) = (BTreeSet::new(), ClusterSlotSet::default());
    let mut epochs: Vec<&str> = Vec::new();
    for OfShard { watermark, .. } in &read {
        not_covered.extend(watermark.not_covered.iter().cloned());
        covers = covers.or(watermark.covers.as_ref()?);
        epochs.push(&watermark.epoch);
    }
    let epoch = epochs.join(",");
    let stamps: Option<Vec<(Stamp, Watermark)>> =
        read.iter().map(|one| Some((stamp_of(&one.watermark)?, one.watermark.clone()))).collect();
    let (_, least) = stamps?.into_iter().min_by_key(|(stamp, _)| *stamp)?;
    let not_covered = not_covered.into_iter().collect();
    Some(Watermark { epoch, not_covered, covers: Some(covers), node: None, ..least })
}

fn stamp_of(watermark: &Watermark) -> Option<Stamp> {
    watermark.snapshot.parse::<Snapshot>().ok().map(|snapshot| snapshot.stamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(node: &str, snapshot: &str) -> OfShard {
        let watermark = Watermark {
            epoch: format!("e{node}"),
            incarnation: "life".to_owned(),
            snapshot: snapshot.to_owned(),
            as_of: format!("at {snapshot}"),
            not_covered: vec![format!("of {node}"), "both".to_owned()],
            covers: Some(if node == "a" { "0-5" } else { "6-9" }.parse().unwrap()),
            node: Some(node.to_owned()),
            runs: Some(vec!["a r1".to_owned(), "b r2".to_owned()]),
        };
        OfShard { node: node.to_owned(), run: if node == "a" { "r1" } else { "r2" }.to_owned(), watermark }
    }

    #[test]
    fn the_least_of_all_counts_with_what_any_leaves_out() {
        let least = least(vec![of("a", "10:10:"), of("b", "7:9:7,8")]).unwrap();
        assert_eq!((least.snapshot.as_str(), least.epoch.as_str()), ("7:9:7,8", "ea,eb"));
        assert_eq!(least.not_covered, ["both", "of a", "of b"]);
        assert_eq!(least.covers.unwrap().to_string(), "0-9");
    }

    #[test]
    fn there_is_none_where_shards_know_other_servers_or_another_database() {
        let both = |change: fn(&mut OfShard)| {
            let mut one = of("a", "10:10:");
            change(&mut one);
            least(vec![one, of("b", "9:9:")])
        };
        assert!(both(|_| {}).is_some());
        assert_eq!(both(|one| one.run = "r3".to_owned()), None);
        assert_eq!(both(|one| one.node = "c".to_owned()), None);
        assert_eq!(both(|one| one.watermark.incarnation = "other".to_owned()), None);
        assert_eq!(both(|one| one.watermark.runs = Some(vec!["a r1".to_owned()])), None);
        assert_eq!(both(|one| one.watermark.covers = None), None);
        assert_eq!(least(Vec::new()), None);
    }
}
