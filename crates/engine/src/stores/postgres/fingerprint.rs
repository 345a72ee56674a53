//! The coverage fingerprint: a digest of every catalog row that decides what a dataset's query returns and what is captured of
//! it. It is computed by the poll's own statement, so that it belongs to the snapshot which the watermark moves to.
//!
//! Catalogs are read as tables, which the statement's snapshot covers. Functions that read them otherwise (`pg_get_*`,
//! `to_regclass`, `has_*`, casts to `regclass`) would answer from the newest state.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Executor, Row as _};

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
    /// Those of them with generated columns: the expressions of a partition may be its own.
    pub generated: BTreeSet<u32>,
    /// Roots of captured trees.
    pub roots: BTreeSet<u32>,
    /// User-defined types.
    pub types: BTreeSet<u32>,
    /// User-defined functions.
    pub functions: BTreeSet<u32>,
    /// Collations, configurations and dictionaries for text search, families of operators.
    pub others: BTreeSet<u32>,
    /// Names of relations, functions, types, operators and more.
    pub names: BTreeSet<(NameKind, String)>,
    /// Schemas in which those names are looked up.
    pub schemas: BTreeSet<String>,
    /// Settings that views, functions and policies read, beside those that always count.
    pub settings: BTreeSet<String>,
    /// Whether row security decides what the query returns.
    pub has_row_security: bool,
    /// The owners of views, and of functions that run with their owner's rights: then it is their role that decides.
    pub owners: BTreeSet<u32>,
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
    /// A collation.
    Collation,
    /// A configuration or dictionary for text search.
    TextSearch,
}

impl NameKind {
    fn letter(self) -> &'static str {
        match self {
            Self::Relation => "R",
            Self::Function => "F",
            Self::Type => "T",
            Self::Operator => "O",
            Self::Collation => "C",
            Self::TextSearch => "X",
        }
    }
}

impl CatalogScope {
    /// Adds another dataset's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.relations.extend(&other.relations);
        self.members.extend(&other.members);
        self.generated.extend(&other.generated);
        self.roots.extend(&other.roots);
        self.types.extend(&other.types);
        self.functions.extend(&other.functions);
        self.others.extend(&other.others);
        self.settings.extend(other.settings.iter().cloned());
        self.owners.extend(&other.owners);
        self.names.extend(other.names.iter().cloned());
        self.schemas.extend(other.schemas.iter().cloned());
        self.has_row_security |= other.has_row_security;
    }

    /// Every relation, once.
    pub(crate) fn all_relations(&self) -> impl Iterator<Item = u32> {
        self.relations.union(&self.members).copied()
    }

    fn has_relation(&self, oid: u32) -> bool {
        self.relations.contains(&oid) || self.members.contains(&oid)
    }

    /// The members that trees have beyond those of `before`, where nothing else differs.
    pub(crate) fn grown_since(&self, before: &Self) -> Option<BTreeSet<u32>> {
        let (members, generated) = (before.members.clone(), before.generated.clone());
        let as_before = Self { members, generated, ..self.clone() };
        let is_grown = as_before == *before && before.members.is_subset(&self.members);
        is_grown.then(|| self.members.difference(&before.members).copied().collect())
    }

    /// An expression of type `text[]`: the state of all this in the catalogs. One text for each object.
    pub(crate) fn expression(&self) -> String {
        let all: BTreeSet<u32> = self.all_relations().collect();
        let names =
            |kind| texts(self.names.iter().filter(|(of, _)| *of == kind).map(|(_, name)| name.as_str()));
        let settings = SETTINGS.into_iter().chain(self.settings.iter().map(String::as_str));
        STATE
            .replace("{own_objects}", OWN_OBJECTS)
            .replace("{own_sequences}", OWN_SEQUENCES)
            .replace("{relations}", &oids(&all))
            .replace("{shaped}", &oids(&self.relations))
            .replace("{computed}", &oids(&self.relations.union(&self.generated).copied().collect()))
            .replace("{types}", &oids(&self.types))
            .replace("{functions}", &oids(&self.functions))
            .replace("{others}", &oids(&self.others))
            .replace("{owners}", &oids(&self.owners))
            .replace("{settings}", &texts(settings))
            .replace("{relation_names}", &names(NameKind::Relation))
            .replace("{function_names}", &names(NameKind::Function))
            .replace("{type_names}", &names(NameKind::Type))
            .replace("{operator_names}", &names(NameKind::Operator))
            .replace("{collation_names}", &names(NameKind::Collation))
            .replace("{search_names}", &names(NameKind::TextSearch))
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

/// An expression of type `text[]`.
const STATE: &str = include_str!("fingerprint/state.sql");

/// Settings that shape what a query returns and are not pinned: they are what the database's owner wants them to be.
const SETTINGS: [&str; 8] = [
    "array_nulls",
    "default_text_search_config",
    "lc_numeric",
    "lc_time",
    "timezone_abbreviations",
    "transform_null_equals",
    "xmlbinary",
    "xmloption",
];

/// Whose rights decide where no owner's do.
const THIS_ROLE: u32 = 0;

/// What all triggers write to. The schema's own row tells that it was renamed and back: then not even a marker could move.
pub(super) const OWN_OBJECTS: &str = "select concat_ws(E'\\x1f', 'o', c.relname, c.oid, c.relkind, c.relpersistence, c.relowner,
      c.relrowsecurity, c.relhastriggers, c.relhasrules, c.relchecks, c.relacl::text, n.nspowner, n.oid, n.xmin,
      (select sum(hashint8extended(a.xmin::text::bigint, a.attnum::bigint)) from pg_catalog.pg_attribute a
        where c.relname = 'outbox' and a.attrelid = c.oid and 0 < a.attnum),
      (select string_agg(t.oid || ' ' || t.xmin, ',' order by t.oid) from pg_catalog.pg_trigger t where t.tgrelid = c.oid),
      (select string_agg(i.indexrelid || ' ' || i.xmin, ',' order by i.indexrelid) from pg_catalog.pg_index i where i.indrelid = c.oid),
      (select string_agg(r.oid || ' ' || r.xmin, ',' order by r.oid) from pg_catalog.pg_rewrite r where r.ev_class = c.oid),
      (select q.xmin from pg_catalog.pg_sequence q where q.seqrelid = c.oid)) as text
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
  where n.nspname = 'cachekeeper' and c.relname in ('outbox', 'outbox_count', 'uncaptured', 'uncaptured_0')";

/// The sequences of capture `c`.
pub(super) const OWN_SEQUENCES: &str =
    "(select string_agg(concat_ws(' ', s.oid, q.xmin), ',' order by s.relname)
    from pg_catalog.pg_class s join pg_catalog.pg_sequence q on q.seqrelid = s.oid
    where s.relname in ('uncaptured_' || c.id, 'whole_' || c.id)
      and s.relnamespace = (select n.oid from pg_catalog.pg_namespace n where n.nspname = 'cachekeeper'))";

/// What the catalogs said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogState {
    /// By kind and oid: what matters; of relations also the versions and the file.
    objects: BTreeMap<String, String>,
    /// By parent: the children in trees of tables.
    children: BTreeMap<u32, BTreeMap<u32, String>>,
    /// By kind and name: where objects of that name are.
    names: BTreeMap<String, BTreeSet<(String, String)>>,
    /// What concerns every dataset.
    common: BTreeSet<String>,
    /// Settings by name.
    settings: BTreeMap<String, String>,
    /// For whose rights: the roles that decide about them.
    roles: BTreeSet<(u32, String)>,
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
                "r" | "t" | "f" | "x" | "c" => {
                    state.objects.insert(format!("{kind}{name}"), rest.to_owned());
                }
                "h" => {
                    let (child, is_leaving) = rest.split_once(BETWEEN).unwrap_or((rest, ""));
                    let children = state.children.entry(name.parse().unwrap_or_default()).or_default();
                    children.insert(child.parse().unwrap_or_default(), is_leaving.to_owned());
                }
                "l" => drop(state.roles.insert((name.parse().unwrap_or_default(), rest.to_owned()))),
                "g" => drop(state.settings.insert(name.to_owned(), rest.to_owned())),
                "o" | "s" | "k" => drop(state.common.insert(text)),
                _ => {
                    let found = state.names.entry(kind.to_owned()).or_default();
                    found.insert((name.to_owned(), rest.to_owned()));
                }
            }
        }
        state
    }

    /// Whether a tree of tables has a member that is not among those which are looked at.
    #[must_use]
    pub(crate) fn has_grown(&self, scope: &CatalogScope) -> bool {
        let mut children = scope.all_relations().filter_map(|oid| self.children.get(&oid)).flatten();
        children.any(|(child, _)| !scope.has_relation(*child))
    }

    /// The fingerprint of a dataset with this definition. New members of trees do not count: [`Self::has_grown`].
    #[must_use]
    pub(crate) fn fingerprint(&self, definition: &str, scope: &CatalogScope) -> Fingerprint {
        let mut matters = vec![definition.to_owned()];
        let (mut versions, mut files) = (Vec::new(), Vec::new());
        for oid in scope.all_relations() {
            for (child, is_leaving) in self.children.get(&oid).into_iter().flatten() {
                if scope.has_relation(*child) {
                    matters.push(format!("h{oid} {child} {is_leaving}"));
                }
            }
            let text = self.objects.get(&format!("r{oid}")).map_or("", String::as_str);
            let mut parts = text.split(BETWEEN);
            matters.push(format!("r{oid} {}", parts.next().unwrap_or_default()));
            versions.push(parts.next().unwrap_or_default());
            files.push(parts.next().unwrap_or_default());
        }
        for (kind, oids) in
            [("t", &scope.types), ("f", &scope.functions), ("x", &scope.others), ("c", &scope.roots)]
        {
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
        for name in SETTINGS.into_iter().chain(scope.settings.iter().map(String::as_str)) {
            matters.push(format!("g{name} {}", self.settings.get(name).map_or("", String::as_str)));
        }
        if scope.has_row_security {
            let decides = |whose: u32| whose == THIS_ROLE || scope.owners.contains(&whose);
            let roles = self.roles.iter().filter(|(whose, _)| decides(*whose));
            matters.extend(roles.map(|(whose, text)| format!("l{whose} {text}")));
        }
        Fingerprint(format!(
            "{} {} {}",
            hash_of(matters.iter().map(String::as_str)),
            hash_of(versions),
            hash_of(files)
        ))
    }
}

/// New members of trees whose rows are all known: each was captured from the moment on in which it joined, its file is still its first
/// one, and either it was made as a partition of a table that was captured then (`$2`), or it has no rows now. A partition that was made
/// as one has a column as old as its system columns; those of an attached table were all changed by that.
const CAME_WITHOUT_ROWS: &str = "
    select c.oid from pg_class c join pg_inherits h on h.inhrelid = c.oid
    where c.oid = any($1::oid[]) and c.relispartition and (c.relkind = 'p' or c.relkind = 'r' and c.relfilenode = c.oid)
        and (select count(*) filter (where t.tgtype & 32 = 0) > 0 and coalesce(bool_and(t.tgtype & 32 <> 0
                or t.tgenabled = 'A' and t.tgparentid <> 0 and t.xmin::text = h.xmin::text), false)
            from pg_trigger t join pg_proc p on p.oid = t.tgfoid
            where t.tgrelid = c.oid and p.pronamespace = 'cachekeeper'::regnamespace)
        and (h.inhparent = any($2::oid[]) and exists (
                select from pg_attribute a, pg_attribute s where a.attrelid = c.oid and s.attrelid = c.oid and s.attnum = -1
                    and 0 < a.attnum and (a.xmin::text, a.cmin::text, a.xmin::text) = (s.xmin::text, s.cmin::text, h.xmin::text))
            or c.relkind = 'p' or pg_relation_size(c.oid) = 0)";

impl Postgres {
    /// Which of these new members of trees brought no row that was not captured, where the tables in `known` were captured before.
    /// One that is locked is none of them.
    pub(crate) async fn came_without_rows(
        &self,
        members: &BTreeSet<u32>,
        known: &BTreeSet<u32>,
    ) -> Result<BTreeSet<u32>, SourceError> {
        let error = |source| SourceError::new("look at new partitions", source);
        let mut transaction = self.pool.begin().await.map_err(error)?;
        // A file's size is asked for under a lock.
        transaction.execute("set local lock_timeout = '50ms'").await.map_err(error)?;
        let oids = |set: &BTreeSet<u32>| set.iter().copied().map(Oid).collect::<Vec<_>>();
        let rows = sqlx::query_scalar::<_, Oid>(CAME_WITHOUT_ROWS)
            .bind(oids(members))
            .bind(oids(known))
            .fetch_all(&mut *transaction)
            .await;
        match rows.map_err(error) {
            Ok(rows) => Ok(rows.into_iter().map(|oid| oid.0).collect()),
            Err(error) if error.is_unreachable() => Err(error),
            Err(error) => {
                tracing::debug!(%error, "what new partitions brought is not known");
                Ok(BTreeSet::new())
            }
        }
    }

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
