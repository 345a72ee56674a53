-- Who may apply write commands of a stream: the newest token. An older holder, paused longer than its lease, is refused
-- (every transaction looks, under a shared advisory lock that a successor takes exclusively).
create table cachekeeper.writer (
    stream text primary key,
    token bigint not null
);
comment on table cachekeeper.writer is 'Cachekeeper: who applies write commands';

-- Commands that were applied or rejected, written in the same transaction as their effect, so that a command which is
-- delivered again is not applied again. Dropped after the retention of the feed, by the clock and by what is left in
-- the stream.
create table cachekeeper.applied (
    stream text not null,
    id text not null,
    -- Of the command's contents: the same id with other contents is a mistake, not a repetition.
    digest text not null,
    entry_ms bigint not null,
    entry_seq bigint not null,
    rows bigint not null,
    -- Why it was rejected; null: it was applied.
    error text,
    at timestamptz not null default clock_timestamp(),
    primary key (stream, id)
);
create index applied_at on cachekeeper.applied (stream, at);
comment on table cachekeeper.applied is 'Cachekeeper: write commands that were carried out';
