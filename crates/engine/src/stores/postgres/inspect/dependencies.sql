-- What a query depends on: the closure over the catalogs of a temporary view of it, of at most {most} objects.
--
-- Dependencies on built-in objects are not recorded, so what a view uses is read from its rule's tree. A rule of a table is nothing
-- that a query of it reads. `how` says how sure that is: 0 the query itself names it, 1 a parsed view, body or policy does, 2 it stands
-- behind something (comparisons, casts, constraints) and may be used, 3 the text of a function has its name.
with recursive object(class, oid, how) as (
    select 'pg_class'::regclass::oid, 'pg_temp.cachekeeper_inspected'::regclass::oid, 0
    union
    select found.class, found.oid, case when found.how = 0 and 2 <= o.how then 2
        when found.how = 0 and o.oid <> 'pg_temp.cachekeeper_inspected'::regclass then 1 else found.how end
    from object o cross join lateral (
        -- What a view's rule names.
        select named.class, named.oid, 0 as how from pg_rewrite r cross join lateral (
            select 'pg_class'::regclass::oid as class, m[1]::oid as oid from regexp_matches(r.ev_action::text, ':relid ([0-9]+)', 'g') m
            union all
            select 'pg_proc'::regclass, m[1]::oid
            from regexp_matches(r.ev_action::text, ':(?:funcid|opfuncid|aggfnoid|winfnoid) ([0-9]+)', 'g') m
            union all
            select 'pg_type'::regclass, m[1]::oid
            from regexp_matches(r.ev_action::text, ':(?:vartype|consttype|resulttype|funcresulttype|opresulttype|coerceresulttype) ([0-9]+)', 'g') m
            union all
            select 'pg_operator'::regclass, m[1]::oid from regexp_matches(r.ev_action::text, ':(?:opno|eqop|sortop) ([0-9]+)', 'g') m
            union all
            select d.refclassid, d.refobjid from pg_depend d
            where d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid <> 'pg_class'::regclass
        ) named
        where o.class = 'pg_class'::regclass and r.ev_class = o.oid and r.ev_type = '1'
        union all
        -- What parsed bodies, defaults of parameters, operators and aggregates name.
        select d.refclassid, d.refobjid, 0 from pg_depend d
        where o.class in ('pg_proc'::regclass, 'pg_operator'::regclass) and d.classid = o.class and d.objid = o.oid
        union all
        select d.refclassid, d.refobjid, 0 from pg_policy p
        join pg_class c on c.oid = p.polrelid and c.relrowsecurity
        join pg_depend d on d.classid = 'pg_policy'::regclass and d.objid = p.oid
        where o.class = 'pg_class'::regclass and p.polrelid = o.oid and p.polcmd in ('r', '*')
        union all
        select 'pg_type'::regclass, a.atttypid, 0 from pg_attribute a
        where o.class = 'pg_class'::regclass and a.attrelid = o.oid and 0 < a.attnum and not a.attisdropped
        union all
        select part.class, part.oid, 0 from pg_type t cross join lateral (
            values ('pg_type'::regclass::oid, t.typelem), ('pg_type'::regclass, t.typbasetype),
                   ('pg_class'::regclass, case when t.typtype = 'c' then t.typrelid end)
            union all
            select 'pg_type'::regclass, g.rngsubtype from pg_range g where t.oid::text in (to_jsonb(g) ->> 'rngtypid', to_jsonb(g) ->> 'rngmultitypid')
        ) part(class, oid)
        where o.class = 'pg_type'::regclass and t.oid = o.oid and 16384 <= t.oid
        union all
        -- What stands behind them: columns' collations, generated columns, partition keys, types and their constraints.
        select d.refclassid, d.refobjid, 2 from pg_depend d
        where d.classid = o.class and d.objid = o.oid and d.deptype <> 'e' and d.refclassid <> 'pg_class'::regclass
            and o.class in ('pg_class'::regclass, 'pg_type'::regclass, 'pg_ts_config'::regclass, 'pg_ts_dict'::regclass)
        union all
        select d.refclassid, d.refobjid, 2 from pg_attrdef a join pg_depend d on d.classid = 'pg_attrdef'::regclass and d.objid = a.oid
        where o.class = 'pg_class'::regclass and a.adrelid = o.oid and d.refclassid = 'pg_proc'::regclass
        union all
        select d.refclassid, d.refobjid, 2 from pg_constraint c join pg_depend d on d.classid = 'pg_constraint'::regclass and d.objid = c.oid
        where o.class = 'pg_type'::regclass and c.contypid = o.oid and d.refclassid = 'pg_proc'::regclass
        union all
        -- Sorting, grouping and comparing go through operator families; casts through their functions.
        select 'pg_opfamily'::regclass, a.amopfamily, 2 from pg_amop a
        where o.class = 'pg_operator'::regclass and a.amopopr = o.oid and 16384 <= o.oid
        union all
        select 'pg_opfamily'::regclass, p.opcfamily, 2 from pg_opclass p
        where o.class = 'pg_type'::regclass and p.opcintype = o.oid and 16384 <= o.oid
            or o.class = 'pg_opclass'::regclass and p.oid = o.oid
        union all
        select 'pg_proc'::regclass, p.amproc, 2 from pg_amproc p where o.class = 'pg_opfamily'::regclass and p.amprocfamily = o.oid
        union all
        select 'pg_operator'::regclass, a.amopopr, 2 from pg_amop a where o.class = 'pg_opfamily'::regclass and a.amopfamily = o.oid
        union all
        select 'pg_proc'::regclass, c.castfunc, 2 from pg_cast c
        where o.class = 'pg_type'::regclass and o.oid in (c.castsource, c.casttarget) and 16384 <= c.oid
        union all
        -- A body that is a text names whatever stands in it: too much rather than too little.
        select meant.class, meant.oid, 3 from pg_proc p join pg_language l on l.oid = p.prolang cross join lateral (
            select array_agg(distinct word) || array_agg(distinct translate(word, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ', 'abcdefghijklmnopqrstuvwxyz')) as words,
                (select array_agg(distinct m[1]) from regexp_matches(p.prosrc, '([-+*/<>=~!@#%^&|`?]+)', 'g') m) as signs
            from (select m[1] as word from regexp_matches(p.prosrc, '([^\x01-#%-/:-@\[-^`{-\x7f]+)', 'g') m
                  union all select replace(m[1], '""', '"') from regexp_matches(p.prosrc, '"((?:[^"]|"")+)"', 'g') m) w
        ) text cross join lateral (
            select 'pg_proc'::regclass::oid as class, f.oid from pg_proc f where f.proname = any(text.words)
            union all
            select 'pg_class'::regclass, c.oid from pg_class c where c.relname = any(text.words) and c.relkind in ('v', 'c') and 16384 <= c.oid
            union all
            select 'pg_type'::regclass, t.oid from pg_type t
            where t.typname = any(text.words) and 16384 <= t.oid and (t.typtype <> 'c' or (select c.relkind = 'c' from pg_class c where c.oid = t.typrelid))
            union all
            select 'pg_operator'::regclass, r.oid from pg_operator r where r.oprname = any(text.signs) and 16384 <= r.oid
            union all
            select 'pg_collation'::regclass, c.oid from pg_collation c where c.collname = any(text.words) and 16384 <= c.oid
            union all
            select 'pg_ts_config'::regclass, c.oid from pg_ts_config c where c.cfgname = any(text.words)
            union all
            select 'pg_ts_dict'::regclass, c.oid from pg_ts_dict c where c.dictname = any(text.words) and 16384 <= c.oid
        ) meant
        where o.class = 'pg_proc'::regclass and p.oid = o.oid and 16384 <= o.oid and l.lanname not in ('internal', 'c')
            and to_jsonb(p) ->> 'prosqlbody' is null
        union all
        -- A text search function may take any configuration; dictionaries by configuration.
        select 'pg_ts_config'::regclass, c.oid, 2 from pg_proc p, pg_ts_config c
        where o.class = 'pg_proc'::regclass and p.oid = o.oid and o.oid < 16384 and p.proname ~ '^(ts_|.*to_ts(vector|query)$)'
            and (16384 <= c.oid or c.oid::regconfig::text = (current_setting('default_text_search_config')::regconfig)::text)
        union all
        select 'pg_ts_dict'::regclass, m.mapdict, 2 from pg_ts_config_map m where o.class = 'pg_ts_config'::regclass and m.mapcfg = o.oid
    ) found
    where found.oid <> 0 and found.class in ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_type'::regclass, 'pg_operator'::regclass,
        'pg_opclass'::regclass, 'pg_opfamily'::regclass, 'pg_collation'::regclass, 'pg_ts_config'::regclass, 'pg_ts_dict'::regclass)
), found as materialized (
    select o.class, o.oid, min(o.how) as how, bool_or(o.how in (0, 3)) as is_named from (select * from object limit {most}) o group by 1, 2
)
select 'relation' as what, c.oid, c.relname::text as name, c.relkind::text as kind, c.oid::regclass::text as shown, n.nspname::text as schema,
    o.how <= 1 as is_certain, true as is_named, n.nspname in ('pg_catalog', 'information_schema') as is_known, c.relrowsecurity as is_special,
    case when c.relkind = 'v' then c.relowner end as owner
from found o join pg_class c on o.class = 'pg_class'::regclass and c.oid = o.oid join pg_namespace n on n.oid = c.relnamespace
where c.oid <> 'pg_temp.cachekeeper_inspected'::regclass and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c')
union all
select 'function', p.oid, p.proname, p.provolatile::text, p.oid::regproc::text, n.nspname, o.how <= 1, o.is_named,
    to_jsonb(p) ->> 'prosqlbody' is not null, l.lanname not in ('internal', 'c'), case when p.prosecdef then p.proowner end
from found o join pg_proc p on o.class = 'pg_proc'::regclass and p.oid = o.oid
join pg_language l on l.oid = p.prolang join pg_namespace n on n.oid = p.pronamespace
union all
select 'type', t.oid, t.typname, t.typtype::text, '', n.nspname, o.how <= 1, true, false, false, null
from found o join pg_type t on o.class = 'pg_type'::regclass and t.oid = o.oid
join pg_namespace n on n.oid = t.typnamespace where 16384 <= t.oid
union all
select 'operator', r.oid, r.oprname, '', '', n.nspname, o.how <= 1, true, false, false, null
from found o join pg_operator r on o.class = 'pg_operator'::regclass and r.oid = o.oid join pg_namespace n on n.oid = r.oprnamespace
union all
select 'collation', c.oid, c.collname, '', '', n.nspname, o.how <= 1, true, false, false, null
from found o join pg_collation c on o.class = 'pg_collation'::regclass and c.oid = o.oid join pg_namespace n on n.oid = c.collnamespace
where 16384 <= c.oid
union all
select 'text search', c.oid, c.cfgname, '', '', n.nspname, o.how <= 1, o.is_named, false, false, null
from found o join pg_ts_config c on o.class = 'pg_ts_config'::regclass and c.oid = o.oid join pg_namespace n on n.oid = c.cfgnamespace
union all
select 'text search', d.oid, d.dictname, '', '', n.nspname, o.how <= 1, o.is_named, false, false, null
from found o join pg_ts_dict d on o.class = 'pg_ts_dict'::regclass and d.oid = o.oid join pg_namespace n on n.oid = d.dictnamespace
union all
select 'operator family', o.oid, '', '', '', 'pg_catalog', false, false, false, false, null
from found o where o.class = 'pg_opfamily'::regclass
union all
select distinct 'setting', 0::oid, lower(m[1]), '', '', 'pg_catalog', true, false, false, false, null::oid
from found o cross join lateral (
    select pg_get_viewdef(c.oid) from pg_class c where o.class = 'pg_class'::regclass and c.oid = o.oid and c.relkind = 'v'
    union all
    select pg_get_functiondef(p.oid) from pg_proc p
    where o.class = 'pg_proc'::regclass and p.oid = o.oid and p.prokind in ('f', 'p') and 16384 <= p.oid
    union all
    select pg_get_expr(p.polqual, p.polrelid) from pg_policy p where o.class = 'pg_class'::regclass and p.polrelid = o.oid
) as defined(text) cross join lateral regexp_matches(defined.text, 'current_setting\s*\(\s*''([^'']+[.][^'']+)''', 'gi') m
union all
select distinct 'schema', 0::oid, '', '', '', btrim(btrim(part), '"'), true, false, false, false, null::oid
from found o join pg_proc p on o.class = 'pg_proc'::regclass and p.oid = o.oid
cross join lateral unnest(p.proconfig) setting
cross join lateral unnest(string_to_array(substr(setting, length('search_path=') + 1), ',')) part
where setting like 'search\_path=%'
union all
select 'system column', 0::oid, '', '', '', 'pg_catalog', true, false, false, false, null
from found o join pg_rewrite r on o.class = 'pg_class'::regclass and r.ev_class = o.oid and r.ev_type = '1'
where o.how <= 1 and r.ev_action::text ~ ':varattno -[1-5] '
union all
select 'too many', 0::oid, '', '', '', 'pg_catalog', true, false, false, false, null from found having {most} <= count(*)
order by 1, 2, 3, 6
