//! One binary for all integration tests: real servers, started and killed by the tests themselves.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::string_slice,
    clippy::too_many_lines,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "tests say what went wrong by failing"
)]

mod absent;
mod admin;
mod backlog;
mod broken_outbox;
mod budgets;
mod cache;
mod cache_keys;
mod cache_load;
mod cache_load_many;
mod cache_trouble;
mod capture;
mod capture_columns;
mod capture_world;
mod causes;
mod check;
mod check_warnings;
mod cli;
mod cli_writes;
mod client_cluster;
mod client_failovers;
mod client_faults;
mod client_limits;
mod client_neighbours;
mod client_programs;
mod clients;
mod cluster;
mod cluster_clients;
mod cluster_follow;
mod cluster_shards;
mod cluster_worker;
mod commands;
mod config;
mod coverage;
mod coverage_dependencies;
mod coverage_orders;
mod coverage_tree;
mod coverage_world;
mod datasets;
mod decision_table;
#[path = "../decisions/mod.rs"]
mod decisions;
mod definitions;
mod demo;
mod directory;
mod encodings;
mod event_log;
mod event_scope;
mod example;
mod explain;
mod explain_doubts;
mod failovers;
mod feed;
mod feed_cost;
mod flows;
mod full_outbox;
mod handover;
mod hash;
mod in_memory;
mod init;
mod init_files;
mod init_statements;
mod installing;
mod key_types;
mod large_commands;
mod leases;
mod ledger;
mod lives;
mod locks;
mod logs;
mod mending;
mod metrics;
mod misses;
mod namespaces;
mod near;
mod near_bound;
mod observing;
mod openapi;
mod oracle;
mod packages;
mod page;
mod passes;
mod per_row;
mod plan;
mod planted;
mod postgres_hosts;
mod postgres_login;
mod postgres_pooler;
mod postgres_silence;
mod postgres_tls;
mod process;
mod readers;
mod readme;
mod redis_login;
mod redis_restarts;
mod redis_roles;
mod redis_tls;
mod reload;
mod revalidation_order;
mod revalidations;
mod rights;
mod rollouts;
mod scripts;
mod seed_batches;
mod seed_loading;
mod seed_messages;
mod seed_reports;
mod sentinel;
mod slow_database;
mod spaces;
mod support;
mod tag_members;
mod tag_windows;
mod tap;
mod tidy;
mod top;
mod tracking;
mod transcode;
mod types;
mod use_signs;
mod verbs;
mod wal;
mod worker;
mod writers;
mod writes;
