-- $1: a relation. Of a domain the type counts that it is made of, perhaps through other domains.
select a.attname::text, quote_ident(a.attname), format_type(a.atttypid, a.atttypmod), b.typname::text,
    b.typcategory = 'A' and coalesce(e.typcategory in ('S', 'E'), false),
    not a.attnotnull and not b.is_filled, has_column_privilege(a.attrelid, a.attnum, 'select')
from pg_catalog.pg_attribute a
cross join lateral (
    with recursive up (oid, is_filled) as (
        select a.atttypid, false
        union all
        select t.typbasetype, up.is_filled or t.typnotnull from up join pg_catalog.pg_type t on t.oid = up.oid where t.typtype = 'd'
    )
    select t.typname, t.typcategory, t.typelem, up.is_filled from up join pg_catalog.pg_type t on t.oid = up.oid where t.typtype <> 'd'
) b
left join pg_catalog.pg_type e on e.oid = b.typelem
where a.attrelid = $1 and 0 < a.attnum and not a.attisdropped
order by a.attnum
