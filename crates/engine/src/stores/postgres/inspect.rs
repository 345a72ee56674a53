//! What a query reads and calls: the dependencies of a temporary view of it, in a transaction that is rolled back.
//! A plan would leave out pruned partitions.

use std::collections::BTreeSet;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Executor, Row as _};

use super::{CatalogScope, NameKind, Postgres, SourceError};

/// What a query depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// What it reads, through views, functions with a parsed body and policies too. Views and composite types are not among them.
    pub relations: Vec<ReadRelation>,
    /// The functions that it calls.
    pub functions: Vec<Function>,
    /// Whether it depends on more than can be followed: the texts of its functions name thousands of others.
    pub has_too_many: bool,
    /// Whether it returns or compares system columns (`ctid`, `xmin` and their kin), which change without any change of a row.
    pub has_system_columns: bool,
    /// Whether it locks rows, as `for update` does.
    pub locks_rows: bool,
    /// That it says `current_date`, `current_timestamp` or the like, which are no functions to the server.
    pub clock_word: Option<&'static str>,
    /// Everything in the catalogs that decides what it returns.
    pub scope: CatalogScope,
}

/// A relation that a query reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRelation {
    /// Its qualified name.
    pub name: String,
    /// `r` table, `p` partitioned, `m` materialized view, `f` foreign, `S` sequence.
    pub kind: char,
    /// Whether it is a catalog of the server's.
    pub is_catalog: bool,
}

/// A function that a query calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// `v` volatile, `s` stable, `i` immutable.
    pub volatility: char,
    /// Whether it may read tables: its language is neither C nor internal.
    pub may_read_tables: bool,
    /// Whether it came with the server and says what stands in tables, catalogs or rights, whatever it is called with.
    pub reads_state: bool,
    /// Whether it may read tables that no dependency names: its body is a text, and it is not immutable.
    pub is_opaque: bool,
}

impl Function {
    /// Whether its result changes without any change of the data.
    pub(super) fn is_clock(&self) -> bool {
        CLOCKS.contains(&self.name.as_str())
    }
}

const DEPENDENCIES: &str = include_str!("inspect/dependencies.sql");

/// So many objects of the catalogs may decide about a query. More would make each poll slow.
const OBJECTS_MAX: usize = 4_000;

/// Whether the query itself says `for update` or the like, in a part of it too; and whether it says a word for the time (the first nine kinds
/// of such words).
const SAYS: &str = "
    select coalesce(bool_or(r.ev_action::text like '%{ROWMARKCLAUSE %'), false),
        coalesce(bool_or(r.ev_action::text ~ '{SQLVALUEFUNCTION :op [0-8] '), false) from pg_catalog.pg_rewrite r
    where r.ev_class = 'pg_temp.cachekeeper_inspected'::pg_catalog.regclass";

/// Where names are looked up.
const SCHEMAS: &str = "
    select case when s.name = '$user' then session_user::text else s.name end
    from (select btrim(btrim(part), '\"') as name from unnest(string_to_array(current_setting('search_path'), ',')) part) s
    where s.name <> ''";

impl Postgres {
    /// Finds out what a query reads and calls.
    ///
    /// # Errors
    /// [`SourceError`], for example without the right to create temporary views.
    pub async fn inspect(&self, query: &str) -> Result<Inspection, SourceError> {
        let what = "find out what a query reads";
        let error = |source| SourceError::new(what, source);
        let mut transaction = self.pool.begin().await.map_err(error)?;
        transaction.execute("set transaction read write").await.map_err(error)?;
        let view = format!("create temporary view cachekeeper_inspected as select q.* from (\n{query}\n) q");
        transaction.execute(AssertSqlSafe(view)).await.map_err(error)?;
        let dependencies = DEPENDENCIES.replace("{most}", &OBJECTS_MAX.to_string());
        let dependencies = sqlx::query(AssertSqlSafe(dependencies)).persistent(false);
        let rows = dependencies.fetch_all(&mut *transaction).await.map_err(error)?;
        let (locks_rows, has_clock_word): (bool, bool) =
            sqlx::query_as(SAYS).persistent(false).fetch_one(&mut *transaction).await.map_err(error)?;
        let schemas: Vec<String> = sqlx::query_scalar(SCHEMAS)
            .persistent(false)
            .fetch_all(&mut *transaction)
            .await
            .map_err(error)?;
        transaction.rollback().await.map_err(error)?;
        let clock_word = has_clock_word.then_some("current_date or its like");
        let mut inspection = Inspection { locks_rows, clock_word, ..Inspection::default() };
        inspection.scope.schemas.extend(schemas);
        for row in rows {
            inspection.add(Dependency {
                what: row.try_get(0).map_err(error)?,
                oid: row.try_get::<Option<Oid>, _>(1).map_err(error)?.map_or(0, |oid| oid.0),
                name: row.try_get(2).map_err(error)?,
                kind: row.try_get::<String, _>(3).map_err(error)?.chars().next().unwrap_or('?'),
                shown: row.try_get(4).map_err(error)?,
                schema: row.try_get(5).map_err(error)?,
                certainty: if row.try_get(6).map_err(error)? { Certainty::Used } else { Certainty::Possible },
                is_named: row.try_get(7).map_err(error)?,
                is_known: row.try_get(8).map_err(error)?,
                is_special: row.try_get(9).map_err(error)?,
                owner: row.try_get::<Option<Oid>, _>(10).map_err(error)?.map(|oid| oid.0),
            });
        }
        Ok(inspection)
    }
}

/// A row of [`DEPENDENCIES`].
struct Dependency {
    what: String,
    oid: u32,
    name: String,
    kind: char,
    shown: String,
    schema: String,
    certainty: Certainty,
    /// Whether it is found by its name, so that another object of that name would take its place.
    is_named: bool,
    /// Of a relation: whether it is a catalog; of a function: whether its body is parsed.
    is_known: bool,
    /// Of a relation: whether it has row security; of a function: whether it may read tables.
    is_special: bool,
    /// Whose rights it uses, if not the caller's.
    owner: Option<u32>,
}

/// Whether a query uses an object. What it only may use counts in the fingerprint, and refuses nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Certainty {
    Used,
    Possible,
}

/// Functions that tell when the statement or its transaction began.
const CLOCKS: [&str; 3] = ["now", "transaction_timestamp", "statement_timestamp"];

/// Objects below this came with the server, and do not change.
const FIRST_USER_OID: u32 = 16_384;

/// Functions of the server whose results follow from tables, catalogs or rights that no dependency names.
fn reads_state(name: &str) -> bool {
    const BEGINNINGS: [&str; 11] = [
        "has_",
        "pg_describe_",
        "pg_get_",
        "pg_has_role",
        "pg_identify_",
        "pg_index",
        "pg_partition_",
        "pg_relation_",
        "pg_sequence_",
        "pg_stat_",
        "to_reg",
    ];
    const ENDS: [&str; 5] =
        ["_to_xml", "_to_xmlschema", "_to_xml_and_xmlschema", "_description", "_is_visible"];
    const NAMES: [&str; 7] = [
        "current_schema",
        "current_schemas",
        "format_type",
        "pg_column_is_updatable",
        "pg_current_snapshot",
        "row_security_active",
        "txid_current_snapshot",
    ];
    BEGINNINGS.iter().any(|part| name.starts_with(part))
        || ENDS.iter().any(|part| name.ends_with(part))
        || NAMES.contains(&name)
}

impl Inspection {
    fn add(&mut self, found: Dependency) {
        let scope = &mut self.scope;
        if FIRST_USER_OID <= found.oid {
            scope.schemas.insert(found.schema.clone());
        }
        scope.owners.extend(found.owner);
        let kind = match found.what.as_str() {
            "relation" => {
                self.add_relation(&found);
                (found.kind != 'c').then_some(NameKind::Relation)
            }
            "function" => {
                self.add_function(&found);
                Some(NameKind::Function)
            }
            "type" => {
                scope.types.insert(found.oid);
                Some(NameKind::Type)
            }
            "operator" => Some(NameKind::Operator),
            "collation" => {
                scope.others.insert(found.oid);
                Some(NameKind::Collation)
            }
            "text search" => {
                scope.others.insert(found.oid);
                Some(NameKind::TextSearch)
            }
            "operator family" => {
                scope.others.insert(found.oid);
                None
            }
            "setting" => {
                scope.settings.insert(found.name.clone());
                None
            }
            "schema" => {
                scope.schemas.insert(found.schema);
                None
            }
            "too many" => {
                self.has_too_many = true;
                None
            }
            _ => {
                self.has_system_columns = true;
                None
            }
        };
        if let Some(kind) = kind.filter(|_| found.is_named) {
            self.scope.names.insert((kind, found.name));
        }
    }

    fn add_relation(&mut self, found: &Dependency) {
        self.scope.relations.insert(found.oid);
        self.scope.has_row_security |= found.is_special;
        let is_read = !matches!(found.kind, 'v' | 'c') || found.is_known;
        if is_read && found.certainty == Certainty::Used {
            let (name, kind, is_catalog) = (found.shown.clone(), found.kind, found.is_known);
            self.relations.push(ReadRelation { name, kind, is_catalog });
        }
    }

    fn add_function(&mut self, found: &Dependency) {
        let is_user = FIRST_USER_OID <= found.oid;
        if is_user {
            self.scope.functions.insert(found.oid);
        }
        if found.certainty == Certainty::Used {
            self.functions.push(Function {
                name: found.shown.clone(),
                volatility: found.kind,
                may_read_tables: found.is_special,
                reads_state: !is_user && reads_state(&found.name),
                is_opaque: is_user && found.is_special && !found.is_known && found.kind != 'i',
            });
        }
    }

    /// What it calls whose result changes without any change of the data; none: nothing of the kind.
    #[must_use]
    pub fn clock(&self) -> Option<&str> {
        let clocks = self.functions.iter().filter(|function| function.is_clock());
        clocks.map(|function| function.name.as_str()).chain(self.clock_word).next()
    }

    /// The names of the tables that it reads, each once.
    #[must_use]
    pub fn tables(&self) -> BTreeSet<&str> {
        self.relations.iter().map(|relation| relation.name.as_str()).collect()
    }
}
