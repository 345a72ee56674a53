-- What is captured: one row for each watched tree of tables. The worker reads it, `cachekeeper migrate` writes it.
create table cachekeeper.capture (
    id int generated always as identity primary key,
    root oid not null unique,
    columns text[] not null,
    -- Of the columns: what was captured under another one is not read but taken for "the whole table".
    version int not null default 0,
    definition text not null default '',
    -- The kill switch. Off: the triggers do nothing, nobody waits for a lock, and the watermark leaves the datasets out.
    is_on boolean not null default true,
    -- Taken after the switch was turned on again: what ran then may have written without being captured.
    settling text,
    settling_in text
);
comment on table cachekeeper.capture is 'Cachekeeper: the trees of tables whose changes are captured';

-- Committed changes, one row for each statement: the watched columns of its distinct old and new rows, or null for "the
-- whole table". Read by comparing snapshots (DESIGN R10), never updated. A ring of partitions by time: what every
-- reader has seen and is older than the retention is truncated, so there are no dead rows.
create table cachekeeper.outbox (
    part smallint not null default (extract(epoch from now())::bigint / 1800 % 4)::smallint,
    xid xid8 not null default pg_current_xact_id(),
    capture int not null,
    version int not null,
    keys text[],
    at timestamptz not null default clock_timestamp()
) partition by list (part);
create table cachekeeper.outbox_0 partition of cachekeeper.outbox for values in (0);
create table cachekeeper.outbox_1 partition of cachekeeper.outbox for values in (1);
create table cachekeeper.outbox_2 partition of cachekeeper.outbox for values in (2);
create table cachekeeper.outbox_3 partition of cachekeeper.outbox for values in (3);
create index outbox_xid on cachekeeper.outbox (xid);
comment on table cachekeeper.outbox is 'Cachekeeper: committed changes that its worker applies to Redis';

-- Keys captured since a worker last caught up. Beyond `max_outbox` nothing more is written (an absent worker must not
-- fill the disk), and the worker begins anew when it is back. A sequence, because it is seen before any commit.
create sequence cachekeeper.outbox_count;

-- One row: up to which snapshot changes may be gone from the outbox. A cursor behind it must begin anew.
create table cachekeeper.feed (
    only_row boolean primary key default true check (only_row),
    horizon text,
    horizon_in text,
    -- The outbox was full: 'pending', then a snapshot. Changes of transactions that ran then may be missing.
    overflow text,
    overflow_in text
);
insert into cachekeeper.feed default values;

-- A read-your-writes token: call it after the commit, in a statement of its own (DESIGN R18).
create function cachekeeper.token() returns text language sql stable security definer
set search_path = pg_catalog, pg_temp
as $$ select i.id::text || '/' || pg_current_snapshot()::text from cachekeeper.incarnation i
      where i.started = pg_postmaster_start_time()
      and i.db = (select d.oid from pg_database d where d.datname = current_database()) $$;
comment on function cachekeeper.token() is 'Cachekeeper: a read-your-writes token for the moment, to be taken after the commit';
grant usage on schema cachekeeper to public;
