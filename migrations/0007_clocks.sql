-- What is kept for a while, or ends with an incarnation, is told by nothing that somebody can set: the server's clock may jump.
set local lock_timeout = '100ms';

-- How long workers have led the stream while there were records of it, by their own clocks that only measure how long
-- something takes. It is how old records are told.
alter table cachekeeper.writer add column led_ms bigint not null default 0;
-- What that clock said when the record was made; null: not yet known, as for records that earlier versions make.
alter table cachekeeper.applied add column led_ms bigint;
drop index cachekeeper.applied_at;
create index applied_led on cachekeeper.applied (namespace, stream, led_ms);
-- Whoever drops records also notes what is not known of them.
do $$
declare
    held record;
begin
    for held in
        select distinct a.grantee::regrole::text as role from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'cachekeeper.applied'::regclass and a.grantee not in (0, c.relowner) and a.privilege_type = 'DELETE'
    loop
        execute format('grant update on cachekeeper.applied to %s', held.role);
    end loop;
end $$;

-- A transaction with an earlier id may have been prepared before this incarnation: what was captured of it is lost.
alter table cachekeeper.incarnation
    add column first_xid xid8 not null default pg_current_xact_id(),
    drop column since;
