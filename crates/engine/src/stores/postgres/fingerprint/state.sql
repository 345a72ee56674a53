-- The state of the catalogs as far as it concerns some datasets: one text for each object, its kind, its oid or name, and then what is
-- known of it. Sums of hashes, because sorting the columns of hundreds of tables would take most of the time.
array(
  select concat_ws(E'\x1f', 'r', c.oid, md5(concat_ws(' ', c.relname, c.relnamespace, c.relkind, c.relpersistence, c.relowner,
      c.relhastriggers, c.relrowsecurity, c.relforcerowsecurity, c.relispartition,
      case when c.relkind = 'v' then c.reloptions end, a.shape, d.generated, t.triggers, u.parents, s.subscriptions,
      case when c.relkind in ('v', 'm') then (select string_agg(md5(regexp_replace(r.ev_action::text, ':(location|stmt_location|stmt_len) -?[0-9]+', '', 'g')), ',' order by r.oid)
        from pg_catalog.pg_rewrite r where r.ev_class = c.oid and r.ev_type = '1') end,
      case when c.relrowsecurity then (select string_agg(concat_ws(' ', p.polname, p.polcmd, p.polpermissive, p.polroles,
          md5(p.polqual::text)), ',' order by p.polname)
        from pg_catalog.pg_policy p where p.polrelid = c.oid and p.polcmd in ('r', '*')) end,
      -- Where no trigger tells that it was emptied, its file does.
      case when c.relkind = 'r' and t.events & 32 = 0 then c.relfilenode end)),
    coalesce(a.versions::text, '-'), c.relfilenode)
  from pg_catalog.pg_class c
  left join (select a.attrelid, sum(hashtextextended(a.attname::text, hashint8extended(
        (a.attnum::bigint << 32) + a.atttypid::bigint, (a.atttypmod::bigint << 32) + a.attcollation::bigint
        + case when a.attgenerated <> '' then 1 else 0 end))) as shape,
      sum(hashint8extended(a.xmin::text::bigint, a.attnum::bigint)) as versions
    from pg_catalog.pg_attribute a where a.attrelid = any({shaped}) and 0 < a.attnum and not a.attisdropped
    group by a.attrelid) a on a.attrelid = c.oid
  left join (select d.adrelid, string_agg(md5(d.adbin::text), ',' order by d.adnum) as generated
    from pg_catalog.pg_attrdef d join pg_catalog.pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
    where d.adrelid = any({computed}) and a.attgenerated <> '' group by d.adrelid) d on d.adrelid = c.oid
  left join (select t.tgrelid, bit_or(t.tgtype) as events, string_agg(concat_ws(' ', t.oid, t.xmin, t.tgenabled, t.tgfoid, t.tgtype,
        t.tgattr, t.tgqual is null), ',' order by t.oid) as triggers
    from pg_catalog.pg_trigger t where t.tgrelid = any({relations}) and t.tgname like 'cachekeeper%'
    group by t.tgrelid) t on t.tgrelid = c.oid
  left join (select h.inhrelid, string_agg(h.inhparent::text, ',' order by h.inhparent) as parents
    from pg_catalog.pg_inherits h where h.inhrelid = any({relations}) group by h.inhrelid) u on u.inhrelid = c.oid
  left join (select s.srrelid, string_agg(s.srsubid::text, ',' order by s.srsubid) as subscriptions
    from pg_catalog.pg_subscription_rel s where s.srrelid = any({relations}) group by s.srrelid) s on s.srrelid = c.oid
  where c.oid = any({relations})
  union all
  select concat_ws(E'\x1f', 'h', h.inhparent, h.inhrelid, to_jsonb(h) ->> 'inhdetachpending')
  from pg_catalog.pg_inherits h where h.inhparent = any({relations})
  union all
  select concat_ws(E'\x1f', 't', t.oid, t.typname, t.typnamespace, t.typtype, t.typbasetype, t.typtypmod, t.typelem, t.typrelid,
      t.typoutput, t.typcollation, t.typnotnull,
      case t.typtype
        when 'e' then (select md5(string_agg(e.oid || ' ' || e.enumlabel, ',' order by e.oid)) from pg_catalog.pg_enum e where e.enumtypid = t.oid)
        when 'd' then (select md5(string_agg(c.oid || ' ' || c.conbin::text, ',' order by c.oid)) from pg_catalog.pg_constraint c where c.contypid = t.oid)
        when 'r' then (select concat_ws(' ', g.rngsubtype, g.rngcollation, g.rngsubopc, g.rngcanonical) from pg_catalog.pg_range g where g.rngtypid = t.oid)
      end)
  from pg_catalog.pg_type t where t.oid = any({types})
  union all
  select concat_ws(E'\x1f', 'f', p.oid, md5(concat_ws(' ', p.proname, p.pronamespace, p.prolang, p.provolatile, p.prosecdef,
      p.proowner, p.proisstrict, p.prorettype, p.proargtypes, p.proconfig, p.prosrc, p.probin, p.proargdefaults::text, to_jsonb(p) ->> 'prosqlbody',
      case when p.prokind = 'a' then (select to_jsonb(g)::text from pg_catalog.pg_aggregate g where g.aggfnoid = p.oid) end)))
  from pg_catalog.pg_proc p where p.oid = any({functions})
  union all
  select concat_ws(E'\x1f', 'x', c.oid, c.collname, c.collnamespace, md5((to_jsonb(c) - 'collversion' - 'collowner')::text))
  from pg_catalog.pg_collation c where c.oid = any({others})
  union all
  select concat_ws(E'\x1f', 'x', c.oid, c.cfgname, c.cfgparser, (select md5(string_agg(concat_ws(' ', m.maptokentype, m.mapseqno, m.mapdict), ','
      order by m.maptokentype, m.mapseqno)) from pg_catalog.pg_ts_config_map m where m.mapcfg = c.oid))
  from pg_catalog.pg_ts_config c where c.oid = any({others})
  union all
  select concat_ws(E'\x1f', 'x', d.oid, d.xmin, d.dictname, d.dicttemplate, d.dictinitoption)
  from pg_catalog.pg_ts_dict d where d.oid = any({others})
  union all
  select concat_ws(E'\x1f', 'x', y.oid,
      (select md5(string_agg(concat_ws(' ', p.amproclefttype, p.amprocrighttype, p.amprocnum, p.amproc::oid), ','
        order by p.amproclefttype, p.amprocrighttype, p.amprocnum)) from pg_catalog.pg_amproc p where p.amprocfamily = y.oid),
      (select md5(string_agg(concat_ws(' ', o.amoplefttype, o.amoprighttype, o.amopstrategy, o.amopopr), ','
        order by o.amoplefttype, o.amoprighttype, o.amopstrategy)) from pg_catalog.pg_amop o where o.amopfamily = y.oid))
  from pg_catalog.pg_opfamily y where y.oid = any({others})
  union all
  select concat_ws(E'\x1f', 'R' || c.relname, n.nspname, c.oid)
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.relname = any({relation_names}) and c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname = any({schemas})
  union all
  select concat_ws(E'\x1f', 'F' || p.proname, n.nspname, p.oid)
  from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  where p.proname = any({function_names}) and 16384 <= p.oid and n.nspname = any({schemas})
  union all
  select concat_ws(E'\x1f', 'T' || t.typname, n.nspname, t.oid)
  from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace
  where t.typname = any({type_names}) and n.nspname = any({schemas})
  union all
  select concat_ws(E'\x1f', 'O' || r.oprname, n.nspname, r.oid)
  from pg_catalog.pg_operator r join pg_catalog.pg_namespace n on n.oid = r.oprnamespace
  where r.oprname = any({operator_names}) and 16384 <= r.oid and n.nspname = any({schemas})
  union all
  select concat_ws(E'\x1f', 'C' || c.collname, n.nspname, c.oid)
  from pg_catalog.pg_collation c join pg_catalog.pg_namespace n on n.oid = c.collnamespace
  where c.collname = any({collation_names}) and n.nspname = any({schemas})
  union all
  select concat_ws(E'\x1f', 'X' || c.name, n.nspname, c.oid)
  from (select g.cfgname as name, g.cfgnamespace as namespace, g.oid from pg_catalog.pg_ts_config g where g.cfgname = any({search_names})
    union all select d.dictname, d.dictnamespace, d.oid from pg_catalog.pg_ts_dict d where d.dictname = any({search_names})) c
  join pg_catalog.pg_namespace n on n.oid = c.namespace where n.nspname = any({schemas})
  union all
  select concat_ws(E'\x1f', 'c', c.root, p.oid, p.xmin, c.is_on, c.settling is null, to_jsonb(c) ->> 'gaps', {own_sequences})
  from cachekeeper.capture c left join pg_catalog.pg_proc p on p.proname = 'capture_' || c.id
    and p.pronamespace = (select n.oid from pg_catalog.pg_namespace n where n.nspname = 'cachekeeper')
  union all
  {own_objects}
  union all
  select concat_ws(E'\x1f', 's', s.setdatabase, s.setrole, s.setconfig)
  from pg_catalog.pg_db_role_setting s
  where s.setdatabase in (0, (select d.oid from pg_catalog.pg_database d where d.datname = current_database()))
    and s.setrole in (0, (select r.oid from pg_catalog.pg_roles r where r.rolname = session_user))
  union all
  -- The rows of a statement that are captured together are kept in temporary files of whoever writes, whose limit would make it fail.
  select concat_ws(E'\x1f', 's', l.setdatabase, l.setrole, l.setting)
  from (select s.setdatabase, s.setrole, c.setting from pg_catalog.pg_db_role_setting s, unnest(s.setconfig) c(setting)
        where s.setdatabase in (0, (select d.oid from pg_catalog.pg_database d where d.datname = current_database()))
        union all select 0, 0, 'temp_file_limit=' || current_setting('temp_file_limit')) l
  where l.setting like 'temp\_file\_limit=%' and exists (select from cachekeeper.capture c where c.mode = 'statement')
  union all
  select concat_ws(E'\x1f', 'k', k.oid) from pg_catalog.pg_cast k where 16384 <= k.oid
  union all
  -- Sessions of ours have the same: what is set for a role or a database is read by new ones, and they are replaced then.
  select concat_ws(E'\x1f', 'g', g.name, current_setting(g.name, true)) from unnest({settings}) g(name)
  union all
  -- Whose rights decide: this role's (0), and those of the owners of views and of functions with their owner's rights.
  (with recursive role(asks, oid) as (
    select case when r.rolname = current_user then 0::oid else r.oid end, r.oid from pg_catalog.pg_roles r
    where {row_security} and (r.rolname = current_user or r.oid = any({owners}))
    union select role.asks, m.roleid from role join pg_catalog.pg_auth_members m on m.member = role.oid)
  select concat_ws(E'\x1f', 'l', role.asks, r.oid, r.rolname, r.rolsuper, r.rolbypassrls, r.rolinherit,
      (select string_agg(concat_ws(' ', m.roleid, to_jsonb(m) ->> 'inherit_option'), ',' order by m.roleid) from pg_catalog.pg_auth_members m where m.member = r.oid))
  from role join pg_catalog.pg_roles r on r.oid = role.oid)
)
