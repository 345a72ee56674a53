-- What keeps writers from failing whatever becomes of the outbox (promise 7). Steps of a sequence that has reached its end
-- would fail, so none of ours ends.
set local lock_timeout = '100ms';
do $$
declare
    found record;
begin
    for found in
        select c.relname from pg_class c
        where c.relnamespace = 'cachekeeper'::regnamespace and c.relkind = 'S'
            and (c.relname in ('outbox_count', 'uncaptured') or c.relname like 'uncaptured\_%')
    loop
        execute format('alter sequence cachekeeper.%I cycle', found.relname);
    end loop;
end $$;

-- Moved where the marker of a capture, or the one of all captures, cannot be: then each capture may have missed something.
create sequence cachekeeper.uncaptured_0 cycle;
alter table cachekeeper.feed
    -- That marker, as far as it was looked at. `marker` is the sum of both.
    add column marker_of_all bigint not null default 0;
do $$
declare
    held record;
begin
    if current_setting('server_version_num')::int >= 150000 then
        alter sequence cachekeeper.uncaptured_0 set unlogged;
    end if;
    for held in
        select a.grantee::regrole::text as role from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'cachekeeper.uncaptured'::regclass and a.grantee not in (0, c.relowner) and a.privilege_type = 'SELECT'
    loop
        execute format('grant select on sequence cachekeeper.uncaptured_0 to %s', held.role);
    end loop;
end $$;

-- Whether rows can be written to the outbox, whatever they hold: it is as it was made. It reads catalogs, and still is called
-- immutable: so it is evaluated where the plan of the expression that calls it is made, and that plan is made anew whenever
-- something about one of the two relations has changed. Each row asks, and the catalogs are read once a session.
create function cachekeeper.outbox_is_sound(outbox regclass, counter regclass) returns boolean language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (
        select from pg_class c
        where c.oid = outbox and c.relkind = 'r' and not c.relispartition and not c.relrowsecurity and c.relchecks = 0
            and not exists (select from pg_rewrite r where r.ev_class = c.oid)
            and not exists (select from pg_trigger t where t.tgrelid = c.oid)
            -- An index of our short columns takes any row; one of keys does not take long ones.
            and not exists (select from pg_index i where i.indrelid = c.oid and (i.indisunique or i.indisexclusion
                or i.indexprs is not null or i.indpred is not null
                or exists (select from unnest(i.indclass) o(class) where 16384 <= o.class)
                or exists (select from unnest(i.indkey) k(number) join pg_attribute a on a.attrelid = c.oid and a.attnum = k.number
                    where a.attname not in ('xid', 'capture', 'version', 'at'))))
    ) and (
        select count(*) filter (where a.atttypmod = -1 and a.attidentity = '' and a.attgenerated = ''
            and (a.attname, a.atttypid) in (('xid', 'xid8'::regtype), ('capture', 'int4'::regtype), ('version', 'int4'::regtype),
                ('keys', 'text[]'::regtype), ('at', 'timestamptz'::regtype))
            and (a.attname <> 'keys' or not a.attnotnull)) = 5
            and bool_and(a.attname in ('xid', 'capture', 'version', 'keys', 'at') or not a.attnotnull and not a.atthasdef
                and a.attgenerated = '' and a.attidentity = '' and exists (
                    select from pg_type t where t.oid = a.atttypid and t.typtype <> 'd'))
        from pg_attribute a where a.attrelid = outbox and 0 < a.attnum and not a.attisdropped
    ) and exists (
        select from pg_sequence s
        where s.seqrelid = counter and s.seqtypid = 'int8'::regtype and s.seqincrement = 1 and s.seqcache = 1
            and s.seqmax = 9223372036854775807
    );
end $$;

-- Called once a command by the triggers, with their owner's rights and while the lock on the outbox is held: counts one unit,
-- and answers the count; fails where rows cannot be written. Below 0: the count of a transaction with an old snapshot, in which
-- not everything could be seen. Whoever alters the sequence that counts is waited for for a moment only.
create function cachekeeper.begin_capture() returns bigint language plpgsql
set lock_timeout = '10ms'
as $$
begin
    -- A plan that is made with an old snapshot would outlive it.
    if pg_catalog.current_setting('transaction_isolation') operator(pg_catalog.<>) 'read committed' then
        return cachekeeper.begin_capture_in_old_snapshot();
    end if;
    if cachekeeper.outbox_is_sound('cachekeeper.outbox'::pg_catalog.regclass, 'cachekeeper.outbox_count'::pg_catalog.regclass)
            and pg_catalog.has_table_privilege('cachekeeper.outbox'::pg_catalog.regclass, 'insert') then
        return pg_catalog.nextval('cachekeeper.outbox_count');
    end if;
    raise exception 'rows cannot be written to cachekeeper.outbox';
end $$;

create function cachekeeper.begin_capture_in_old_snapshot() returns bigint language plpgsql
as $$
declare
    outbox pg_catalog.regclass := 'cachekeeper.outbox';
    counter pg_catalog.regclass := 'cachekeeper.outbox_count';
    note pg_catalog.text;
begin
    if not pg_catalog.has_table_privilege(outbox, 'insert') then
        raise exception 'rows cannot be written to cachekeeper.outbox';
    end if;
    -- Variables are not known when a plan is made: so the catalogs are read each time, once a transaction.
    if pg_catalog.current_setting('cachekeeper.sound_in', true)
            operator(pg_catalog.=) pg_catalog.pg_current_xact_id()::pg_catalog.text then
        null;
    elsif cachekeeper.outbox_is_sound(outbox, counter) then
        note := pg_catalog.set_config('cachekeeper.sound_in', pg_catalog.pg_current_xact_id()::pg_catalog.text, true);
    else
        raise exception 'rows cannot be written to cachekeeper.outbox';
    end if;
    return 0 operator(pg_catalog.-) pg_catalog.nextval(counter);
end $$;

-- Tells that something was not captured.
create function cachekeeper.move_marker(marker regclass) returns bigint language plpgsql
set lock_timeout = '10ms'
as $$
begin
    return pg_catalog.nextval(marker);
end $$;

grant execute on function cachekeeper.outbox_is_sound(regclass, regclass), cachekeeper.begin_capture(),
    cachekeeper.begin_capture_in_old_snapshot(), cachekeeper.move_marker(regclass) to public;

alter table cachekeeper.capture
    -- A digest of what is Cachekeeper's own in the catalogs, as it was last seen: while it was otherwise, the triggers may have
    -- missed something and could not even tell.
    add column objects text;
