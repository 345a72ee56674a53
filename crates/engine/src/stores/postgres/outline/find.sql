-- $1: a name as SQL has it, perhaps with its schema. Without one, the first in the search path has it.
with asked (parts) as (select parse_ident($1))
select c.oid, n.nspname::text, c.relname::text, quote_ident(n.nspname) || '.' || quote_ident(c.relname), c.relkind::text,
    c.relpersistence = 't', n.nspname in ('pg_catalog', 'information_schema', 'pg_toast'),
    coalesce((
        with recursive tree (oid) as (
            select c.oid union all select i.inhrelid from tree join pg_catalog.pg_inherits i on i.inhparent = tree.oid
        )
        select case when bool_or(0 <= t.reltuples and t.relkind <> 'p') or c.relkind = 'p' and 0 < c.reltuples
            then sum(greatest(t.reltuples, 0)) filter (where t.relkind <> 'p') end
        from tree join pg_catalog.pg_class t using (oid)
    ), -1)::double precision,
    pg_get_userbyid(c.relowner)::text, current_user::text, has_schema_privilege(n.oid, 'usage'), pg_has_role(c.relowner, 'usage'),
    row_security_active(c.oid),
    c.relkind <> 'p' and exists (
        select from pg_catalog.pg_inherits i join pg_catalog.pg_class h on h.oid = i.inhrelid
        where i.inhparent = c.oid and not h.relispartition and h.relkind in ('r', 'p', 'f'))
from asked, pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where c.relname = asked.parts[cardinality(asked.parts)]
    and case cardinality(asked.parts)
        when 1 then pg_table_is_visible(c.oid)
        when 2 then n.nspname = asked.parts[1]
        when 3 then n.nspname = asked.parts[2] and asked.parts[1] = current_database()
        else false
    end
