//! What the schema `cachekeeper` is to be, as the migrations make it, and what is found in its place.

use std::collections::BTreeSet;

use sqlx::Executor;

use super::session::Session;
use super::{ErrorKind, Postgres, SourceError};

/// What the migrations make, as [`DESCRIBE`] tells it. A test keeps it true.
const EXPECTED: &str = include_str!("../../../migrations/schema.txt");

/// One line for each object. What belongs to a capture (`capture_1` and its kin) is not among them.
const DESCRIBE: &str = "
    with ours as (
        select n.oid from pg_catalog.pg_namespace n where n.nspname = 'cachekeeper'
    ), relation as (
        select c.oid, c.relname::text as name, c.relkind, c.relpersistence, c.relrowsecurity
        from pg_catalog.pg_class c join ours on c.relnamespace = ours.oid
        where c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and c.relname !~ '^(uncaptured|whole)_[1-9][0-9]*$'
            and not (c.relkind = 'S' and exists (select from pg_catalog.pg_depend d
                where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid and d.deptype = 'i'))
    )
    select case r.relkind when 'r' then 'table ' when 'S' then 'sequence ' else 'relation ' end || r.name
        || case when r.relpersistence = 'u' or r.relkind = 'S' and current_setting('server_version_num')::int < 150000
            then ' unlogged' else '' end
        || case when r.relrowsecurity then ' with row security' else '' end
    from relation r
    union all
    select 'column ' || r.name || '.' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
        || case when a.attnotnull then ' not null' else '' end || case a.attidentity when '' then '' else ' identity' end
        || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '')
    from relation r join pg_catalog.pg_attribute a on a.attrelid = r.oid and 0 < a.attnum and not a.attisdropped
    left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum where r.relkind = 'r'
    union all
    select 'constraint of ' || r.name || ' ' || pg_get_constraintdef(k.oid)
    from relation r join pg_catalog.pg_constraint k on k.conrelid = r.oid and k.contype not in ('n', 't')
    union all
    select case when i.indisunique then 'unique ' when i.indexprs is not null or i.indpred is not null then 'computed ' else '' end || 'index of ' || r.name
        || regexp_replace(pg_get_indexdef(i.indexrelid), '^.* USING', '') || case when i.indisvalid then '' else ' invalid' end
    from relation r join pg_catalog.pg_index i on i.indrelid = r.oid
    where not exists (select from pg_catalog.pg_constraint k where k.conindid = i.indexrelid)
    union all
    select 'trigger of ' || r.name || ' ' || t.tgname
    from relation r join pg_catalog.pg_trigger t on t.tgrelid = r.oid and not t.tgisinternal
    union all
    select 'rule of ' || r.name || ' ' || w.rulename
    from relation r join pg_catalog.pg_rewrite w on w.ev_class = r.oid and w.rulename <> '_RETURN'
    union all
    select 'function ' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ') '
        || md5(concat_ws(' ', pg_get_function_result(p.oid), p.prosrc, p.provolatile, p.prosecdef, p.proconfig))
    from pg_catalog.pg_proc p join ours on p.pronamespace = ours.oid where p.proname !~ '^(capture|truncate)_[1-9][0-9]*$'";

/// Objects of the schema that belong to somebody who cannot act as this role anyway: what they hold would run with this role's
/// rights. Functions of captures run with their own.
const STRANGERS: &str = "
    with object(what, owner) as (
        select 'the schema cachekeeper', n.nspowner from pg_catalog.pg_namespace n where n.nspname = 'cachekeeper'
        union all
        select case c.relkind when 'S' then 'sequence' when 'r' then 'table' else 'relation' end || ' cachekeeper.' || c.relname, c.relowner
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where n.nspname = 'cachekeeper' and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S') and c.relname !~ '^(uncaptured|whole)_[1-9][0-9]*$'
        union all
        select 'function cachekeeper.' || p.proname || '(' || pg_get_function_identity_arguments(p.oid) || ')', p.proowner
        from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
        where n.nspname = 'cachekeeper' and p.proname !~ '^(capture|truncate)_[1-9][0-9]*$'
        union all
        select 'operator cachekeeper.' || o.oprname, o.oprowner
        from pg_catalog.pg_operator o join pg_catalog.pg_namespace n on n.oid = o.oprnamespace where n.nspname = 'cachekeeper'
        union all
        select 'type cachekeeper.' || t.typname, t.typowner
        from pg_catalog.pg_type t join pg_catalog.pg_namespace n on n.oid = t.typnamespace
        where n.nspname = 'cachekeeper' and t.typtype <> 'c' and t.typelem = 0
    )
    select o.what || ' belongs to ' || pg_get_userbyid(o.owner) from object o
    where not pg_has_role(o.owner, (select r.oid from pg_catalog.pg_roles r where r.rolname = current_user), 'member')";

impl Postgres {
    /// A connection for changes of the schema: names that are not qualified are the server's own, and nobody waits behind us for
    /// longer than a moment.
    pub(super) async fn open_for_schema(&self) -> Result<Session, SourceError> {
        let mut connection = self.open_unlimited().await?;
        for setting in [
            "set search_path = pg_catalog, pg_temp",
            "set default_transaction_read_only = off",
            "set lock_timeout = '50ms'",
        ] {
            let set = connection.execute(setting).await;
            set.map_err(|source| SourceError::new("prepare a connection for the schema", source))?;
        }
        Ok(connection)
    }

    /// The schema as it is, one line for each object: what `migrations/schema.txt` says of one that is whole.
    ///
    /// # Errors
    /// [`SourceError`] if the server does not answer.
    pub async fn describe_schema(&self) -> Result<Vec<String>, SourceError> {
        let mut connection = self.open_for_schema().await?;
        Ok(describe(&mut connection).await?.into_iter().collect())
    }

    /// What is missing or wrong in the schema `cachekeeper`, where it is there; empty: nothing. To explain why something of ours
    /// has failed.
    ///
    /// # Errors
    /// [`SourceError`] if the server does not answer.
    pub async fn schema_flaws(&self) -> Result<Vec<String>, SourceError> {
        let mut connection = self.open_for_schema().await?;
        let found = describe(&mut connection).await?;
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let mut flaws = compare(&found);
        if !flaws.is_empty() {
            return Ok(flaws);
        }
        match is_feed_empty(&mut connection).await {
            // Who may not look cannot tell; which right is missing is said elsewhere.
            Err(error) if error.kind == ErrorKind::Forbidden => {}
            is_empty => flaws.extend(is_empty?.then(|| NO_FEED.to_owned())),
        }
        Ok(flaws)
    }
}

/// How the one row of `feed` is told to be gone.
pub(super) const NO_FEED: &str = "the row of feed was missing";

/// Whether the one row of `feed` is not there.
pub(super) async fn is_feed_empty(connection: &mut Session) -> Result<bool, SourceError> {
    let sql = "select not exists (select from cachekeeper.feed)";
    let found = sqlx::query_scalar(sql).fetch_one(connection).await;
    found.map_err(|source| SourceError::new("look at the outbox", source))
}

/// Whether the schema, or what is to become of it, is this role's to change. Where others own it and it is exactly as the migrations
/// make it, nothing of it runs with the rights of whoever reads it, and an ordinary role may go on as a worker does.
///
/// # Errors
/// [`ErrorKind::Foreign`] where somebody else could have put something into it, with the objects.
pub(super) async fn is_own(connection: &mut Session) -> Result<bool, SourceError> {
    let error = |source| SourceError::new(USE, source);
    let found: Vec<String> =
        sqlx::query_scalar(STRANGERS).fetch_all(&mut *connection).await.map_err(error)?;
    if found.is_empty() {
        return Ok(true);
    }
    let is_superuser = "select r.rolsuper from pg_catalog.pg_roles r where r.rolname = current_user";
    let is_superuser: bool =
        sqlx::query_scalar(is_superuser).fetch_one(&mut *connection).await.map_err(error)?;
    let there = describe(connection).await?;
    if is_superuser || there.is_empty() || !compare(&there).is_empty() {
        return Err(SourceError::with(USE, ErrorKind::Foreign, found.join("; ")));
    }
    Ok(false)
}

const USE: &str = "use the schema `cachekeeper`";

/// What differs from what the migrations make. Empty too where there is no schema.
pub(super) async fn flaws(connection: &mut Session) -> Result<Vec<String>, SourceError> {
    let found = describe(connection).await?;
    Ok(if found.is_empty() { Vec::new() } else { compare(&found) })
}

/// The schema as it is, one line for each object.
///
/// # Errors
/// [`SourceError`]
pub(super) async fn describe(connection: &mut Session) -> Result<BTreeSet<String>, SourceError> {
    let error = |source| SourceError::new("look at the schema `cachekeeper`", source);
    // What is not in the path is printed with its schema, so the path is the same whoever asks.
    let mut transaction = connection.begin().await.map_err(error)?;
    transaction.execute("set local search_path = pg_catalog, pg_temp").await.map_err(error)?;
    let lines: Vec<String> =
        sqlx::query_scalar(DESCRIBE).fetch_all(&mut *transaction).await.map_err(error)?;
    transaction.commit().await.map_err(error)?;
    Ok(lines.into_iter().collect())
}

/// The tables and sequences that the migrations make.
pub(super) fn relations() -> impl Iterator<Item = &'static str> {
    EXPECTED
        .lines()
        .filter_map(|line| line.strip_prefix("table ").or_else(|| line.strip_prefix("sequence ")))
        .filter_map(|rest| rest.split(' ').next())
}

/// The relation that a line belongs to; none: to a function.
fn relation_of(line: &str) -> Option<&str> {
    let mut words = line.split(' ').skip_while(|word| matches!(*word, "unique" | "computed"));
    match words.next()? {
        "table" | "sequence" => words.next(),
        "column" => words.next()?.split('.').next(),
        "constraint" | "index" | "trigger" | "rule" => words.nth(1),
        _ => None,
    }
}

/// The part of a line that names what it is about.
fn name_of(line: &str) -> &str {
    match line.split(' ').next() {
        Some("table" | "sequence" | "column") => {
            line.splitn(3, ' ').nth(2).map_or(line, |rest| line.strip_suffix(rest).unwrap_or(line).trim_end())
        }
        Some("function") => line.rsplit_once(' ').map_or(line, |(name, _)| name),
        _ => line,
    }
}

fn compare(found: &BTreeSet<String>) -> Vec<String> {
    let expected: BTreeSet<&str> = EXPECTED.lines().filter(|line| !line.is_empty()).collect();
    let is_there = |name: &str| found.iter().any(|line| name_of(line) == name);
    let lost: Vec<&str> = expected
        .iter()
        .filter(|line| {
            !found.contains(**line) && matches!(line.split(' ').next(), Some("table" | "sequence"))
        })
        .map(|line| name_of(line))
        .filter(|name| !is_there(name))
        .collect();
    let is_lost = |line: &str| {
        relation_of(line).is_some_and(|relation| lost.contains(&format!("table {relation}").as_str()))
    };
    let missing = expected.iter().filter(|line| !found.contains(**line));
    let missing = missing.filter(|line| !is_lost(line) || lost.contains(&name_of(line))).map(|line| {
        let name = name_of(line);
        if is_there(name) && name != *line {
            format!("{name} was changed")
        } else {
            format!("{name} was missing")
        }
    });
    // Others' plain indexes, tables and functions harm nobody.
    let is_harmful = |line: &&String| {
        let is_ours = relation_of(line).is_some_and(|relation| relations().any(|ours| ours == relation));
        is_ours
            && !line.starts_with("index ")
            && !expected.contains(line.as_str())
            && !expected.iter().any(|other| name_of(other) == name_of(line))
    };
    let more = found.iter().filter(is_harmful).map(|line| format!("{} does not belong there", name_of(line)));
    missing.chain(more).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_once() {
        let whole: BTreeSet<String> = EXPECTED.lines().map(str::to_owned).collect();
        assert_eq!(compare(&whole), [""; 0]);
        let without: BTreeSet<String> =
            whole.iter().filter(|line| relation_of(line) != Some("outbox")).cloned().collect();
        assert_eq!(compare(&without), ["table outbox was missing"]);
        let mut other = whole;
        other.remove("column feed.horizon text");
        other.insert("column feed.horizon integer".to_owned());
        other.insert("column feed.more text".to_owned());
        other.insert("index of feed btree (horizon)".to_owned());
        other.insert("unique index of outbox btree (xid)".to_owned());
        other.insert("table of_others".to_owned());
        assert_eq!(
            compare(&other),
            [
                "column feed.horizon was changed",
                "column feed.more does not belong there",
                "unique index of outbox btree (xid) does not belong there"
            ]
        );
    }
}
