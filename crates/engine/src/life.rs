//! Which life of the primary is served (R13). The one that Redis was filled from holds a lease in the metadata, which workers renew.
//! A successor replaces it at once; any other server only when that lease has been over for a while, so that two primaries behind one
//! address cannot take turns, and none is locked out.

use std::time::Duration;

use crate::stores::postgres::life::{Life, Place};

/// How long the lease of the recorded life must have been over before another server is taken.
const GRACE: Duration = Duration::from_secs(10);
/// The same for an earlier timeline of the same cluster: an old primary that came back.
const GRACE_EARLIER: Duration = Duration::from_secs(60);

/// How long the lease of the recorded life must have been over before this one may take its place; none: it may at once.
pub(crate) fn grace(recorded: Option<&str>, recorded_incarnation: &str, new: &Life) -> Option<Duration> {
    // An earlier version recorded nothing.
    let recorded = read(recorded?);
    let is_next = new.predecessor.as_deref() == Some(recorded_incarnation);
    let (Some(recorded), Some(place)) = (recorded, &new.place) else {
        return (!is_next).then_some(GRACE);
    };
    if place.system != recorded.system {
        // Other clusters have no order.
        return Some(GRACE);
    }
    // A copy that was restored while the original lives is behind it.
    let is_behind = place.timeline < recorded.timeline || place.flushed < recorded.flushed;
    if recorded.timeline < place.timeline || is_next && !is_behind {
        return None;
    }
    Some(if place.timeline < recorded.timeline { GRACE_EARLIER } else { GRACE })
}

/// A place as it stands in the metadata.
pub(crate) fn write(place: Option<&Place>) -> String {
    place.map_or_else(String::new, |Place { system, timeline, flushed }| {
        format!("{system} {timeline} {flushed}")
    })
}

/// The reverse; none: it is not known.
fn read(text: &str) -> Option<Place> {
    let mut words = text.split(' ');
    let (system, timeline, flushed) = (words.next()?, words.next()?, words.next()?);
    Some(Place {
        system: system.to_owned(),
        timeline: timeline.parse().ok()?,
        flushed: flushed.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life(predecessor: &str, system: &str, timeline: u32, flushed: u64) -> Life {
        let place = Some(Place { system: system.to_owned(), timeline, flushed });
        Life { incarnation: "new".to_owned(), predecessor: Some(predecessor.to_owned()), place }
    }

    #[test]
    fn only_a_later_timeline_or_a_successor_is_taken_at_once() {
        let wait = |new: &Life| grace(Some("77 2 1000"), "old", new);
        assert_eq!(wait(&life("any", "77", 3, 5)), None, "a promotion, also of a standby that lagged");
        assert_eq!(wait(&life("old", "77", 2, 1000)), None, "a restart");
        assert_eq!(wait(&life("old", "77", 2, 999)), Some(GRACE), "a backup that was restored");
        assert_eq!(wait(&life("older", "77", 2, 2000)), Some(GRACE), "another standby, promoted as well");
        assert_eq!(wait(&life("old", "77", 1, 2000)), Some(GRACE_EARLIER), "the old primary came back");
        assert_eq!(wait(&life("old", "78", 2, 2000)), Some(GRACE), "another cluster");
        assert_eq!(wait(&Life::default()), Some(GRACE), "a server that does not say");
        assert_eq!(grace(None, "old", &life("any", "78", 1, 0)), None, "an earlier version recorded nothing");
        let unknown = |predecessor| grace(Some(""), "old", &life(predecessor, "77", 1, 5));
        assert_eq!(
            (unknown("old"), unknown("any")),
            (None, Some(GRACE)),
            "nothing but the predecessor is known"
        );
    }

    #[test]
    fn a_place_is_read_as_it_was_written() {
        let place = life("", "7350", 3, u64::MAX).place;
        assert_eq!(read(&write(place.as_ref())), place);
        assert_eq!(read(&write(None)), None);
    }
}
