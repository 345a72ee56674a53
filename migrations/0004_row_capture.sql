-- Capture by row triggers into one flat, unlogged outbox: no row and no lock of it reaches the WAL at run time. A crash
-- empties it, and ends the incarnation with it (DESIGN R2, 2.4). Rows leave it by bounded deletes, so that nobody waits
-- for a lock on it; `vacuum_truncate` would take one.
set local lock_timeout = '100ms';
lock table cachekeeper.outbox in access exclusive mode;
alter table cachekeeper.outbox rename to outbox_logged;
alter index cachekeeper.outbox_xid rename to outbox_logged_xid;
create unlogged table cachekeeper.outbox (
    xid xid8 not null default pg_current_xact_id(),
    capture int not null,
    version int not null,
    -- The watched columns of one or several rows, one row behind the other; null: the whole table.
    keys text[],
    at timestamptz not null default clock_timestamp()
) with (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 20000);
-- The lock is not held for long: what is more than a few rows is revalidated instead.
do $$
begin
    if (select count(*) from (select from cachekeeper.outbox_logged limit 20001) o) <= 20000 then
        insert into cachekeeper.outbox (xid, capture, version, keys, at)
        select xid, capture, version, case when keys is not null then array(select k from unnest(keys) k) end, at
        from cachekeeper.outbox_logged;
    else
        update cachekeeper.feed set overflow = 'pending', overflow_in = null;
    end if;
end $$;
create index outbox_xid on cachekeeper.outbox (xid);
comment on table cachekeeper.outbox is 'Cachekeeper: committed changes that its worker applies to Redis';
-- Whoever had rights on the old one has them on the new one; rows are deleted now, where partitions were truncated.
do $$
declare
    held record;
begin
    for held in
        select distinct a.grantee::regrole::text as role,
            case a.privilege_type when 'TRUNCATE' then 'DELETE' else a.privilege_type end as privilege
        from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'cachekeeper.outbox_logged'::regclass and a.grantee not in (0, c.relowner)
            and a.privilege_type in ('SELECT', 'INSERT', 'TRUNCATE')
    loop
        execute format('grant %s on cachekeeper.outbox to %s', held.privilege, held.role);
    end loop;
end $$;
drop table cachekeeper.outbox_logged;

alter table cachekeeper.capture
    -- Where a table's oid means what it meant: a dump is restored into another database.
    add column db oid not null default 0,
    -- 'row' or 'statement'.
    add column mode text not null default 'statement',
    -- How often changes may have been missed; what is covered then is another coverage than before.
    add column gaps bigint not null default 0,
    -- Its marker sequence, `uncaptured_<id>`, as far as it was looked at.
    add column marker bigint not null default 0,
    -- The transactions that may have written uncaptured: those that held a lock of writers on the tree.
    add column holders text[] not null default '{}';
update cachekeeper.capture set db = (select d.oid from pg_database d where d.datname = current_database());
alter table cachekeeper.feed
    -- The marker of all captures, as far as it was looked at.
    add column marker bigint not null default 0;
-- Moved by a trigger that could not write to the outbox, beside the one of its capture: sequences are seen before any commit,
-- and by whoever reads at an older snapshot.
create sequence cachekeeper.uncaptured;
alter table cachekeeper.incarnation
    -- What was prepared before has lost its rows of the outbox.
    add column since timestamptz not null default clock_timestamp();
-- Text that this server cannot send as UTF-8; null in its place, so that one such value does not keep the others back.
create function cachekeeper.sendable(value text) returns text language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    perform convert_to(value, 'UTF8');
    return value;
exception when others then
    return null;
end $$;
do $$
begin
    -- Where the server can, no step of a sequence reaches the WAL either.
    if current_setting('server_version_num')::int >= 150000 then
        alter sequence cachekeeper.outbox_count set unlogged;
        alter sequence cachekeeper.uncaptured set unlogged;
    end if;
end $$;
