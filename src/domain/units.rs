//! Durations, sizes and shares with units.
