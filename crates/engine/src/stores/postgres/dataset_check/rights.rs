//! What a worker's role needs of the schema `cachekeeper`, and whether it has it.

use sqlx::Row as _;

use crate::stores::postgres::{Postgres, SourceError};

/// Tables and sequences with the privileges that are needed; what is not there is no matter of rights.
const NEEDED: [(&str, &[&str]); 9] = [
    ("incarnation", &["select", "insert", "delete"]),
    ("outbox", &["select", "delete"]),
    ("outbox_count", &["select", "update"]),
    ("feed", &["select", "update"]),
    ("capture", &["select", "insert", "update"]),
    ("used_by", &["select", "insert", "delete"]),
    ("applied", &["select", "insert", "update", "delete"]),
    ("writer", &["select", "insert", "update"]),
    ("uncaptured", &["select"]),
];

/// The catalogs are read, because naming a table of a schema that this role may not use is an error.
const MISSING: &str = "
    select current_user::text, w.name, w.privilege
    from unnest($1::text[], $2::text[]) w(name, privilege)
    join pg_catalog.pg_class c on c.relname = w.name
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = 'cachekeeper'
    where not has_schema_privilege(n.oid, 'usage') or not case when c.relkind = 'S'
        then has_sequence_privilege(c.oid, w.privilege) else has_table_privilege(c.oid, w.privilege) end
    order by w.name, w.privilege";

/// Rights that a role lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingRights {
    /// The role.
    pub role: String,
    /// `select on cachekeeper.outbox`, …
    pub rights: Vec<String>,
}

impl Postgres {
    /// What this role lacks of the rights that a worker needs of the schema; none: nothing.
    ///
    /// # Errors
    /// [`SourceError`] where the database cannot be asked.
    pub async fn missing_rights(&self) -> Result<Option<MissingRights>, SourceError> {
        let error = |source| SourceError::new("look at the rights of the role", source);
        let (mut names, mut privileges) = (Vec::new(), Vec::new());
        for (name, needed) in NEEDED {
            for privilege in needed {
                names.push(name);
                privileges.push(*privilege);
            }
        }
        let rows = sqlx::query(MISSING).bind(names).bind(privileges).fetch_all(&self.pool).await;
        let mut missing: Option<MissingRights> = None;
        for row in rows.map_err(error)? {
            let role: String = row.try_get(0).map_err(error)?;
            let (name, privilege): (String, String) =
                (row.try_get(1).map_err(error)?, row.try_get(2).map_err(error)?);
            let found = missing.get_or_insert(MissingRights { role, rights: Vec::new() });
            found.rights.push(format!("{privilege} on cachekeeper.{name}"));
        }
        Ok(missing)
    }
}
