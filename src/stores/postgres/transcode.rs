//! From Postgres's binary rows straight to the bytes of a value.
