//! What the catalogs say about a table of which a dataset is to be made. Only catalogs are read, which every role may: what the role
//! may not read of the table itself is among the answers.

use std::collections::BTreeSet;

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::postgres::types::Oid;

use super::statement::columns_of;
use super::{Postgres, SourceError};

/// What fails where the catalogs cannot be read.
const LOOK: &str = "look at a table";
/// Other tables that are named where there is none of the name.
const SIMILAR_MAX: i64 = 5;

/// A table, view or the like, as far as a dataset depends on it.
#[expect(clippy::struct_excessive_bools, reason = "what the catalogs say, each for itself")]
#[derive(Debug, Clone, Default)]
pub struct TableOutline {
    /// As in `pg_class`.
    pub oid: u32,
    /// The name of its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Both as SQL, quoted where needed.
    pub path: String,
    /// `r`, `p`, `v`, `m`, `f` and others, as in `pg_class`.
    pub kind: char,
    /// Whether only one session sees it.
    pub is_temporary: bool,
    /// Whether it came with the server.
    pub is_catalog: bool,
    /// How many rows the planner takes it to have; none: nobody has counted.
    pub rows: Option<u64>,
    /// Whose it is.
    pub owner: String,
    /// The role that looks.
    pub role: String,
    /// Whether the role may use its schema.
    pub may_use_schema: bool,
    /// Whether the role may make triggers on it.
    pub is_ours: bool,
    /// Whether row security decides which rows the role sees.
    pub has_row_security: bool,
    /// The tables at the top of the trees that it belongs to, as SQL; itself where it belongs to none.
    pub roots: Vec<String>,
    /// Whether other tables inherit from it, which are no partitions.
    pub has_heirs: bool,
    /// Whether one of those trees has a foreign table.
    pub has_foreign_member: bool,
    /// Its columns, in their order.
    pub columns: Vec<OutlineColumn>,
    /// What makes its rows unique: the primary key first, then those with few columns.
    pub keys: Vec<UniqueKey>,
    /// Its foreign keys.
    pub references: Vec<Reference>,
}

/// A column.
#[expect(clippy::struct_excessive_bools, reason = "what the catalogs say, each for itself")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutlineColumn {
    /// Its name.
    pub name: String,
    /// The same as SQL, quoted where needed.
    pub quoted: String,
    /// Its type as people write it.
    pub type_name: String,
    /// The name of its type in the catalog; of a domain that of what it is made of.
    pub base: String,
    /// Whether it is a list of texts.
    pub is_text_list: bool,
    /// Whether it may be null.
    pub is_nullable: bool,
    /// Whether the role may read it.
    pub is_readable: bool,
    /// Whether a value of the type has a form in MessagePack and JSON.
    pub has_form: bool,
    /// Whether its values can stand in keys and tags.
    pub can_be_in_keys: bool,
}

/// A unique index, on columns alone and for all rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueKey {
    /// Its name.
    pub name: String,
    /// The names of its columns.
    pub columns: Vec<String>,
    /// Whether it is the primary key.
    pub is_primary: bool,
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The names of its columns.
    pub columns: Vec<String>,
    /// The name of the schema of the table that it leads to.
    pub schema: String,
    /// The name of that table.
    pub table: String,
}

/// What was found by a name.
#[derive(Debug, Clone)]
pub enum Outlined {
    /// It.
    Table(Box<TableOutline>),
    /// Nothing. Others that may have been meant, as SQL.
    Missing(Vec<String>),
}

const FIND: &str = include_str!("outline/find.sql");
const COLUMNS: &str = include_str!("outline/columns.sql");

/// Unique indexes that hold for every row: those with a condition or an expression do not.
const KEYS: &str = "
    select c.relname::text, i.indisprimary, array(
        select a.attname::text from unnest(i.indkey::pg_catalog.int2[]) with ordinality k (number, place)
        join pg_catalog.pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.number
        where k.place <= i.indnkeyatts order by k.place)
    from pg_catalog.pg_index i join pg_catalog.pg_class c on c.oid = i.indexrelid
    where i.indrelid = $1 and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null
    order by i.indisprimary desc, i.indnkeyatts, c.relname";

/// Those that a foreign key makes for each partition of the other table are the same once more.
const REFERENCES: &str = "
    select n.nspname::text, c.relname::text, array(
        select a.attname::text from unnest(k.conkey) with ordinality u (number, place)
        join pg_catalog.pg_attribute a on a.attrelid = k.conrelid and a.attnum = u.number order by u.place)
    from pg_catalog.pg_constraint k join pg_catalog.pg_class c on c.oid = k.confrelid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where k.conrelid = $1 and k.contype = 'f'
        and not exists (select from pg_catalog.pg_constraint p where p.oid = k.conparentid and p.conrelid = k.conrelid)
    order by k.conkey, n.nspname, c.relname";

/// Names that sound the same in any schema, or that are this one in another case.
const SIMILAR: &str = "
    select quote_ident(n.nspname) || '.' || quote_ident(c.relname)
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname !~ '^pg_' and n.nspname not in ('information_schema', 'cachekeeper')
        and (lower(c.relname) = lower($1) or lower(c.relname) in (lower($1) || 's', rtrim(lower($1), 's')))
    order by 1 limit $2";

impl Postgres {
    /// What the catalogs say about the table of this name, which is written as in SQL.
    ///
    /// # Errors
    /// [`SourceError`]; of [`super::ErrorKind::Data`] where this cannot be a name.
    pub async fn outline(&self, table: &str) -> Result<Outlined, SourceError> {
        let error = |source| SourceError::new(LOOK, source);
        let found = sqlx::query(FIND).bind(table).fetch_optional(&self.pool).await.map_err(error)?;
        let Some(row) = found else {
            let parts = "select parts[cardinality(parts)] from (select parse_ident($1)) p (parts)";
            let name: String =
                sqlx::query_scalar(parts).bind(table).fetch_one(&self.pool).await.map_err(error)?;
            let similar = sqlx::query_scalar(SIMILAR).bind(name).bind(SIMILAR_MAX);
            return Ok(Outlined::Missing(similar.fetch_all(&self.pool).await.map_err(error)?));
        };
        let mut outline = read_table(&row).map_err(error)?;
        let oid = Oid(outline.oid);
        let rows = sqlx::query(COLUMNS).bind(oid).fetch_all(&self.pool).await.map_err(error)?;
        outline.columns = rows.iter().map(read_column).collect::<Result<_, _>>().map_err(error)?;
        self.look_at_types(&mut outline).await?;
        for row in sqlx::query(KEYS).bind(oid).fetch_all(&self.pool).await.map_err(error)? {
            outline.keys.push(UniqueKey {
                name: row.try_get(0).map_err(error)?,
                is_primary: row.try_get(1).map_err(error)?,
                columns: row.try_get(2).map_err(error)?,
            });
        }
        for row in sqlx::query(REFERENCES).bind(oid).fetch_all(&self.pool).await.map_err(error)? {
            outline.references.push(Reference {
                schema: row.try_get(0).map_err(error)?,
                table: row.try_get(1).map_err(error)?,
                columns: row.try_get(2).map_err(error)?,
            });
        }
        if outline.may_use_schema {
            self.look_at_tree(&mut outline).await?;
        }
        Ok(Outlined::Table(Box::new(outline)))
    }

    /// Which columns have a form, as a load of them would find out.
    async fn look_at_types(&self, outline: &mut TableOutline) -> Result<(), SourceError> {
        if outline.columns.is_empty() || !outline.may_use_schema {
            return Ok(());
        }
        let list: Vec<&str> = outline.columns.iter().map(|column| column.quoted.as_str()).collect();
        let query = format!("select {} from {}", list.join(", "), outline.path);
        let error = |source| SourceError::new(LOOK, source);
        let mut connection = self.pool.acquire().await.map_err(error)?;
        // What cannot be described is said by whoever checks the dataset.
        let Ok((_, described)) = columns_of(&mut connection, &query).await? else { return Ok(()) };
        for (column, described) in outline.columns.iter_mut().zip(described) {
            column.has_form = described.has_form();
            column.can_be_in_keys = described.can_be_in_keys();
        }
        Ok(())
    }

    async fn look_at_tree(&self, outline: &mut TableOutline) -> Result<(), SourceError> {
        let members = self.trees_without_schema(std::slice::from_ref(&outline.path)).await?;
        outline.has_foreign_member = outline.kind != 'f' && members.iter().any(|member| member.kind == 'f');
        let roots: BTreeSet<u32> = members.iter().filter_map(|member| member.root).collect();
        let tops = members.iter().filter(|member| roots.contains(&member.oid));
        let tops: BTreeSet<&str> = tops.map(|member| member.path.as_str()).collect();
        outline.roots = tops.into_iter().map(str::to_owned).collect();
        outline.is_ours &= members.iter().all(|member| member.is_ours);
        Ok(())
    }
}

fn read_table(row: &PgRow) -> Result<TableOutline, sqlx::Error> {
    let kind: String = row.try_get(4)?;
    let rows: f64 = row.try_get(7)?;
    Ok(TableOutline {
        oid: row.try_get::<Oid, _>(0)?.0,
        schema: row.try_get(1)?,
        name: row.try_get(2)?,
        path: row.try_get(3)?,
        kind: kind.chars().next().unwrap_or('?'),
        is_temporary: row.try_get(5)?,
        is_catalog: row.try_get(6)?,
        rows: whole(rows),
        owner: row.try_get(8)?,
        role: row.try_get(9)?,
        may_use_schema: row.try_get(10)?,
        is_ours: row.try_get(11)?,
        has_row_security: row.try_get(12)?,
        has_heirs: row.try_get(13)?,
        ..TableOutline::default()
    })
}

/// An estimate of rows; below nothing: there is none.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an estimate, and not below 0")]
pub(super) fn whole(rows: f64) -> Option<u64> {
    (0.0 <= rows).then_some(rows as u64)
}

fn read_column(row: &PgRow) -> Result<OutlineColumn, sqlx::Error> {
    Ok(OutlineColumn {
        name: row.try_get(0)?,
        quoted: row.try_get(1)?,
        type_name: row.try_get(2)?,
        base: row.try_get(3)?,
        is_text_list: row.try_get(4)?,
        is_nullable: row.try_get(5)?,
        is_readable: row.try_get(6)?,
        has_form: true,
        can_be_in_keys: true,
    })
}
