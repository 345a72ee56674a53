//! The coverage fingerprint: a digest of every catalog row that decides what a dataset's query returns and what is captured of
//! it. It is computed by the poll's own statement, so that it belongs to the snapshot which the watermark moves to.
//!
//! Catalogs are read as tables, which the statement's snapshot covers. Functions that read them otherwise (`pg_get_*`,
//! `to_regclass`, `has_*`, casts to `regclass`) would answer from the newest state.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AssertSqlSafe, Row as _};

use super::statement::INCARNATION;
use super::{Postgres, SourceError};
use cachekeeper_protocol::revision::hash_of;

/// A coverage fingerprint: the hash of what matters, of the versions of the columns' catalog rows, and of the files. The text is
/// what Redis records; `advance.lua` compares in the same way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether nothing has changed that could have changed an entry. What does not matter moves versions alone (a grant, `set
    /// statistics`) or files alone (`vacuum full`, `cluster`); a rewrite that computes other values in the same columns moves both.
    #[must_use]
    pub fn is_unchanged_since(&self, before: &Self) -> bool {
        let (mut now, mut then) = (self.0.split(' '), before.0.split(' '));
        let mut same = || now.next() == then.next();
        let (matters, versions, files) = (same(), same(), same());
        matters && (versions || files)
    }
}

/// The catalog rows that concern a dataset, by oid and by name. A name that the query uses may mean something else once an object
/// of that name appears in its search path, or a schema is renamed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogScope {
    /// What its query and its watch rules read, composite types too. Their columns count.
    pub relations: BTreeSet<u32>,
    /// Further members of their trees. A partition has the columns of its root.
    pub members: BTreeSet<u32>,
    /// Roots of captured trees.
    pub roots: BTreeSet<u32>,
    /// User-defined types.
    pub types: BTreeSet<u32>,
    /// User-defined functions.
    pub functions: BTreeSet<u32>,
    /// Names of relations, functions, types and operators.
    pub names: BTreeSet<(NameKind, String)>,
    /// Schemas in which those names are looked up.
    pub schemas: BTreeSet<String>,
    /// Whether row security decides what the query returns.
    pub has_row_security: bool,
}

/// What a name belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NameKind {
    /// A table, view or the like.
    Relation,
    /// A function.
    Function,
    /// A type.
    Type,
    /// An operator.
    Operator,
}

impl NameKind {
    fn letter(self) -> &'static str {
        match self {
            Self::Relation => "R",
            Self::Function => "F",
            Self::Type => "T",
            Self::Operator => "O",
        }
    }
}

impl CatalogScope {
    /// Adds another dataset's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.relations.extend(&other.relations);
        self.members.extend(&other.members);
        self.roots.extend(&other.roots);
        self.types.extend(&other.types);
        self.functions.extend(&other.functions);
        self.names.extend(other.names.iter().cloned());
        self.schemas.extend(other.schemas.iter().cloned());
        self.has_row_security |= other.has_row_security;
    }

    /// An expression of type `text[]`: the state of all this in the catalogs. One text for each object.
    pub(crate) fn expression(&self) -> String {
        let all: BTreeSet<u32> = self.relations.union(&self.members).copied().collect();
        let names =
            |kind| texts(self.names.iter().filter(|(of, _)| *of == kind).map(|(_, name)| name.as_str()));
        EXPRESSION
            .replace("{relations}", &oids(&all))
            .replace("{shaped}", &oids(&self.relations))
            .replace("{types}", &oids(&self.types))
            .replace("{functions}", &oids(&self.functions))
            .replace("{relation_names}", &names(NameKind::Relation))
            .replace("{function_names}", &names(NameKind::Function))
            .replace("{type_names}", &names(NameKind::Type))
            .replace("{operator_names}", &names(NameKind::Operator))
            .replace("{schemas}", &texts(self.schemas.iter().map(String::as_str)))
            .replace("{row_security}", if self.has_row_security { "true" } else { "false" })
    }
}

fn oids(oids: &BTreeSet<u32>) -> String {
    let list: Vec<String> = oids.iter().map(u32::to_string).collect();
    format!("'{{{}}}'::oid[]", list.join(","))
}

fn texts<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let list: Vec<String> =
        texts.map(|text| format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))).collect();
    format!("array[{}]::text[]", list.join(","))
}

/// Between the parts of an object's text. The first two name the object.
const BETWEEN: char = '\u{1f}';

/// One text for each object: its kind, its oid or name, and then what is known of it. Sums of hashes, because sorting the columns of
/// hundreds of tables would take most of the time.
const EXPRESSION: &str = "array(
  select concat_ws(E'\\x1f', 'r', c.oid, md5(concat_ws(' ', c.relname, c.relnamespace, c.relkind, c.relpersistence, c.relowner,
      c.relhastriggers, c.relrowsecurity, c.relforcerowsecurity, c.relispartition,
      case when c.relkind = 'v' then c.reloptions end, a.shape, d.generated, t.triggers, h.children, u.parents, s.subscriptions,
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
    where d.adrelid = any({shaped}) and a.attgenerated <> '' group by d.adrelid) d on d.adrelid = c.oid
  left join (select t.tgrelid, bit_or(t.tgtype) as events, string_agg(concat_ws(' ', t.oid, t.xmin, t.tgenabled, t.tgfoid, t.tgtype,
        t.tgattr, t.tgqual is null), ',' order by t.oid) as triggers
    from pg_catalog.pg_trigger t where t.tgrelid = any({relations}) and t.tgname like 'cachekeeper%'
    group by t.tgrelid) t on t.tgrelid = c.oid
  left join (select h.inhparent, string_agg(concat_ws(' ', h.inhrelid, to_jsonb(h) ->> 'inhdetachpending'), ',' order by h.inhrelid)
      as children from pg_catalog.pg_inherits h where h.inhparent = any({relations}) group by h.inhparent) h on h.inhparent = c.oid
  left join (select h.inhrelid, string_agg(h.inhparent::text, ',' order by h.inhparent) as parents
    from pg_catalog.pg_inherits h where h.inhrelid = any({relations}) group by h.inhrelid) u on u.inhrelid = c.oid
  left join (select s.srrelid, string_agg(s.srsubid::text, ',' order by s.srsubid) as subscriptions
    from pg_catalog.pg_subscription_rel s where s.srrelid = any({relations}) group by s.srrelid) s on s.srrelid = c.oid
  where c.oid = any({relations})
  union all
  select concat_ws(E'\\x1f', 't', t.oid, t.typname, t.typnamespace, t.typtype, t.typbasetype, t.typtypmod, t.typelem, t.typrelid,
      t.typoutput, t.typcollation, case when t.typtype = 'e' then (select md5(string_agg(e.oid || ' ' || e.enumlabel, ','
      order by e.oid)) from pg_catalog.pg_enum e where e.enumtypid = t.oid) end)
  from pg_catalog.pg_type t where t.oid = any({types})
  union all
  select concat_ws(E'\\x1f', 'f', p.oid, md5(concat_ws(' ', p.proname, p.pronamespace, p.prolang, p.provolatile, p.prosecdef,
      p.proowner, p.proisstrict, p.prorettype, p.proargtypes, p.proconfig, p.prosrc, p.probin, p.proargdefaults::text, to_jsonb(p) ->> 'prosqlbody',
      case when p.prokind = 'a' then (select to_jsonb(g)::text from pg_catalog.pg_aggregate g where g.aggfnoid = p.oid) end)))
  from pg_catalog.pg_proc p where p.oid = any({functions})
  union all
  select concat_ws(E'\\x1f', 'R' || c.relname, n.nspname, c.oid)
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where c.relname = any({relation_names}) and c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname = any({schemas})
  union all
  select concat_ws(E'\\x1f', 'F' || p.proname, n.nspname, p.oid)
  from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
  where p.proname = any({function_names}) and 16384 <= p.oid and n.nspname = any({schemas})
  union all
  select concat_ws(E'\\x1f', 'T' || t.typname, n.nspname, t.oid)
  from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace
  where t.typname = any({type_names}) and n.nspname = any({schemas})
  union all
  select concat_ws(E'\\x1f', 'O' || r.oprname, n.nspname, r.oid)
  from pg_catalog.pg_operator r join pg_catalog.pg_namespace n on n.oid = r.oprnamespace
  where r.oprname = any({operator_names}) and 16384 <= r.oid and n.nspname = any({schemas})
  union all
  select concat_ws(E'\\x1f', 'c', c.root, p.oid, p.xmin, c.is_on, c.settling is null, to_jsonb(c) ->> 'gaps')
  from cachekeeper.capture c left join pg_catalog.pg_proc p on p.proname = 'capture_' || c.id
    and p.pronamespace = (select n.oid from pg_catalog.pg_namespace n where n.nspname = 'cachekeeper')
  union all
  select concat_ws(E'\\x1f', 'o', c.relname, c.oid, c.relkind, c.relpersistence, c.relowner, c.relrowsecurity, c.relhastriggers,
      c.relhasrules, c.relacl::text, n.nspowner)
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where n.nspname = 'cachekeeper' and c.relname in ('outbox', 'outbox_count', 'uncaptured')
  union all
  select concat_ws(E'\\x1f', 's', s.setdatabase, s.setrole, s.setconfig)
  from pg_catalog.pg_db_role_setting s
  where s.setdatabase in (0, (select d.oid from pg_catalog.pg_database d where d.datname = current_database()))
    and s.setrole in (0, (select r.oid from pg_catalog.pg_roles r where r.rolname = session_user))
  union all
  select concat_ws(E'\\x1f', 'k', k.oid) from pg_catalog.pg_cast k where 16384 <= k.oid
  union all
  (with recursive role(oid) as (
    select r.oid from pg_catalog.pg_roles r where {row_security} and r.rolname = current_user
    union select m.roleid from role join pg_catalog.pg_auth_members m on m.member = role.oid)
  select concat_ws(E'\\x1f', 'l', r.oid, r.rolsuper, r.rolbypassrls, r.rolinherit)
  from role join pg_catalog.pg_roles r on r.oid = role.oid)
)";

/// What the catalogs said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogState {
    /// By kind and oid: what matters; of relations also the versions and the file.
    objects: BTreeMap<String, String>,
    /// By kind and name: where objects of that name are.
    names: BTreeMap<String, BTreeSet<(String, String)>>,
    /// What concerns every dataset.
    common: BTreeSet<String>,
    /// What concerns datasets under row security.
    roles: BTreeSet<String>,
}

impl CatalogState {
    /// Reads what [`CatalogScope::expression`] returned.
    #[must_use]
    pub(crate) fn read(texts: Vec<String>) -> Self {
        let mut state = Self::default();
        for text in texts {
            let mut parts = text.splitn(3, BETWEEN);
            let (kind, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let rest = parts.next().unwrap_or_default();
            match kind {
                "r" | "t" | "f" | "c" => {
                    state.objects.insert(format!("{kind}{name}"), rest.to_owned());
                }
                "l" => drop(state.roles.insert(text)),
                "o" | "s" | "k" => drop(state.common.insert(text)),
                _ => {
                    let found = state.names.entry(kind.to_owned()).or_default();
                    found.insert((name.to_owned(), rest.to_owned()));
                }
            }
        }
        state
    }

    /// The fingerprint of a dataset with this definition.
    #[must_use]
    pub(crate) fn fingerprint(&self, definition: &str, scope: &CatalogScope) -> Fingerprint {
        let mut matters = vec![definition.to_owned()];
        let (mut versions, mut files) = (Vec::new(), Vec::new());
        for oid in scope.relations.union(&scope.members) {
            let text = self.objects.get(&format!("r{oid}")).map_or("", String::as_str);
            let mut parts = text.split(BETWEEN);
            matters.push(format!("r{oid} {}", parts.next().unwrap_or_default()));
            versions.push(parts.next().unwrap_or_default());
            files.push(parts.next().unwrap_or_default());
        }
        for (kind, oids) in [("t", &scope.types), ("f", &scope.functions), ("c", &scope.roots)] {
            for oid in oids {
                let text = self.objects.get(&format!("{kind}{oid}"));
                matters.push(format!("{kind}{oid} {}", text.map_or("", String::as_str)));
            }
        }
        for (kind, name) in &scope.names {
            let found = self.names.get(&format!("{}{name}", kind.letter()));
            for (schema, oid) in
                found.into_iter().flatten().filter(|(schema, _)| scope.schemas.contains(schema))
            {
                matters.push(format!("{}{name} {schema} {oid}", kind.letter()));
            }
        }
        matters.extend(self.common.iter().cloned());
        if scope.has_row_security {
            matters.extend(self.roles.iter().cloned());
        }
        Fingerprint(format!(
            "{} {} {}",
            hash_of(matters.iter().map(String::as_str)),
            hash_of(versions),
            hash_of(files)
        ))
    }
}

impl Postgres {
    /// The state of the catalogs now, by the expression of a [`CatalogScope`], and the incarnation, if one is recorded.
    ///
    /// # Errors
    /// [`SourceError`]
    pub(crate) async fn catalog_state(
        &self,
        expression: &str,
    ) -> Result<(CatalogState, Option<String>), SourceError> {
        let error = |source| SourceError::new("read the catalogs", source);
        let sql = format!("select {expression}, {INCARNATION}");
        let query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
        let row = query.fetch_one(&self.pool).await.map_err(error)?;
        let texts: Vec<String> = row.try_get(0).map_err(error)?;
        Ok((CatalogState::read(texts), row.try_get(1).map_err(error)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_or_files_alone_are_no_change() {
        let before = Fingerprint("a b c".to_owned());
        for (now, is_unchanged) in
            [("a b c", true), ("a x c", true), ("a b x", true), ("a x x", false), ("x b c", false)]
        {
            assert_eq!(Fingerprint(now.to_owned()).is_unchanged_since(&before), is_unchanged, "{now}");
        }
    }
}
