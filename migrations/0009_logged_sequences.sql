-- Sequences are logged again: what an unlogged one begins with does not reach the disk of a standby before its next restartpoint
-- (seen with PostgreSQL 15.18, not with 18.6), and one that is promoted before cannot read it ("bad magic number in
-- sequence"), so that nothing is captured. A logged one writes a record each 32 steps.
set local lock_timeout = '100ms';
do $$
declare
    found record;
    held record;
begin
    for found in
        select c.oid, c.relname, c.relacl, c.relowner, s.seqcycle from pg_class c join pg_sequence s on s.seqrelid = c.oid
        where c.relnamespace = 'cachekeeper'::regnamespace and c.relpersistence = 'u' and pg_has_role(c.relowner, 'usage')
    loop
        begin
            execute format('alter sequence cachekeeper.%I set logged', found.relname);
        exception when internal_error then
            -- One that cannot be read is made anew, with the rights that others had.
            execute format('drop sequence cachekeeper.%I', found.relname);
            execute format('create sequence cachekeeper.%I %s', found.relname, case when found.seqcycle then 'cycle' else '' end);
            for held in
                select a.grantee::regrole::text as role, a.privilege_type as kind from aclexplode(found.relacl) a
                where a.grantee not in (0, found.relowner)
            loop
                execute format('grant %s on sequence cachekeeper.%I to %s', held.kind, found.relname, held.role);
            end loop;
        end;
    end loop;
end $$;
