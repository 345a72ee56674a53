-- The order of the definitions of a dataset: each gets a number when a worker has it for the first time. Redis may lose the order,
-- and clocks may be wrong after a failover.
set local lock_timeout = '100ms';
create table cachekeeper.definition (
    namespace text not null,
    dataset text not null,
    -- The hash of what decides an entry's bytes and what touches it.
    definition text not null,
    serial bigint not null,
    primary key (namespace, dataset, definition),
    unique (namespace, dataset, serial)
);
comment on table cachekeeper.definition is 'Cachekeeper: which definition of a dataset is newer than which';
do $$
declare
    held record;
begin
    for held in
        select distinct a.grantee::regrole::text as role from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'cachekeeper.used_by'::regclass and a.grantee not in (0, c.relowner) and a.privilege_type = 'INSERT'
    loop
        execute format('grant select, insert, delete on cachekeeper.definition to %s', held.role);
    end loop;
end $$;

-- Which life of the primary followed which. Logged, so that a standby has it when it is promoted, and a backup when it is restored.
create table cachekeeper.life (
    only_row boolean primary key default true check (only_row),
    id uuid not null,
    predecessor uuid
);
comment on table cachekeeper.life is 'Cachekeeper: the last recorded life of this primary, and the one before it';
do $$
declare
    held record;
begin
    for held in
        select distinct a.grantee::regrole::text as role from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'cachekeeper.incarnation'::regclass and a.grantee not in (0, c.relowner) and a.privilege_type = 'INSERT'
    loop
        execute format('grant select, insert, update on cachekeeper.life to %s', held.role);
    end loop;
end $$;
