//! Expiry windows of tag sets.
//!
//! A tag's members stand in one Redis set per tag and window; the window is named by the second from which none of
//! its members can be alive. So a set needs no expiry of its own (eviction policies take keys with an expiry
//! first), and dropping an old set never takes a member that lives.

use std::time::Duration;

/// How finely a dataset's lifetimes are cut into windows, in seconds: a power of two near a quarter of the
/// longest life, so that a tag has about five sets at a time.
#[must_use]
pub fn window_width(longest_life: Duration) -> u64 {
    let quarter = (longest_life.as_secs() / 4).max(1);
    1 << quarter.ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_about_a_quarter_of_the_longest_life() {
        for (life, width) in [(1, 1), (3, 1), (8, 2), (3600, 512), (7200, 1024)] {
            assert_eq!(window_width(Duration::from_secs(life)), width);
        }
    }
}
