//! Whether the text that a trigger writes of a watched column is the text that a loaded row's key or tag has.

use sqlx::Row as _;
use sqlx::postgres::types::Oid;

use super::Postgres;

/// Whether a column holds one value or a list of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Value,
    List,
}

/// A column of a relation, as far as the text of its values depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SpelledColumn {
    pub name: String,
    /// `v` virtual, `s` stored: whether and how it is generated, as in `pg_attribute`.
    pub generated: String,
    /// Its position in its relation.
    pub number: i16,
    /// What it is the same as: the top of the tree of partitions that it belongs to.
    relation: u32,
    /// Of a view it cannot be told which table's column it is.
    is_of_view: bool,
    /// The type's name, of a domain that of what it is made of.
    pub kind: String,
    is_enum: bool,
    /// Length, or precision and scale; -1: none.
    modifier: i32,
    /// How many domains there are between it and its type.
    domains: i32,
    /// Whether it is one value of that type, or a list of them.
    shape: Shape,
    /// Whether its collation takes different texts for equal.
    is_folded: bool,
}

impl SpelledColumn {
    /// What a query computes, or a list of it, by the driver's name of its type: where values that are equal have several texts. Of others
    /// the type says nothing about the values (`id::text`).
    pub fn computed(type_name: &str) -> Option<Self> {
        let (name, shape) = match type_name.strip_suffix("[]") {
            Some(element) => (element, Shape::List),
            None => (type_name, Shape::Value),
        };
        let kind = match name {
            "NUMERIC" => "numeric",
            "CHAR" => "bpchar",
            "FLOAT4" => "float4",
            "FLOAT8" => "float8",
            "INTERVAL" => "interval",
            _ => return None,
        };
        Some(Self {
            name: String::new(),
            generated: String::new(),
            number: 0,
            relation: 0,
            is_of_view: false,
            kind: kind.to_owned(),
            is_enum: false,
            modifier: -1,
            domains: 0,
            shape,
            is_folded: false,
        })
    }

    /// Whether the query computes it.
    pub fn is_computed(&self) -> bool {
        self.relation == 0
    }

    /// Whether both are columns of one table, its partitions being the same as itself.
    pub fn is_of_the_relation_of(&self, other: &Self) -> bool {
        self.relation == other.relation
    }
}

const COLUMNS: &str = "
    with recursive up as (
        select a.attnum, a.attname, a.attcollation, a.atttypid as type, a.atttypmod as modifier, 0 as domains, 0 as depth, false as is_list
        from pg_catalog.pg_attribute a where a.attrelid = $1 and 0 < a.attnum and not a.attisdropped
        union all
        select up.attnum, up.attname, up.attcollation, case t.typtype when 'd' then t.typbasetype else t.typelem end,
            case t.typtype when 'd' then t.typtypmod else up.modifier end, up.domains + (t.typtype = 'd')::int4, up.depth + 1,
            up.is_list or t.typtype <> 'd'
        from up join pg_catalog.pg_type t on t.oid = up.type where t.typtype = 'd' or t.typcategory = 'A' and t.typelem <> 0
    )
    select distinct on (up.attnum) up.attnum, up.attname::text, t.typname::text, t.typtype = 'e', up.modifier, up.domains,
        exists (select from pg_catalog.pg_collation c where c.oid = up.attcollation and not c.collisdeterministic),
        coalesce(pg_catalog.pg_partition_root($1)::oid, $1), (select c.relkind = 'v' from pg_catalog.pg_class c where c.oid = $1),
        (select g.attgenerated::text from pg_catalog.pg_attribute g where g.attrelid = $1 and g.attnum = up.attnum), up.is_list
    from up join pg_catalog.pg_type t on t.oid = up.type order by up.attnum, up.depth desc";

impl Postgres {
    /// The columns of a relation.
    pub(super) async fn spelled_columns(&self, relation: Oid) -> Result<Vec<SpelledColumn>, sqlx::Error> {
        let rows = sqlx::query(COLUMNS).bind(relation).fetch_all(&self.pool).await?;
        let read = |row: &sqlx::postgres::PgRow| {
            Ok(SpelledColumn {
                number: row.try_get(0)?,
                name: row.try_get(1)?,
                kind: row.try_get(2)?,
                is_enum: row.try_get(3)?,
                modifier: row.try_get(4)?,
                domains: row.try_get(5)?,
                is_folded: row.try_get(6)?,
                relation: row.try_get::<Oid, _>(7)?.0,
                is_of_view: row.try_get(8)?,
                generated: row.try_get(9)?,
                shape: if row.try_get(10)? { Shape::List } else { Shape::Value },
            })
        };
        rows.iter().map(read).collect()
    }
}

/// Why a watched column's text can be another than that of a column of the query which has the same value; none: it cannot.
pub(super) fn difference(watched: &SpelledColumn, shown: &SpelledColumn) -> Option<String> {
    // Of a list that the query shows, each element has the text.
    if watched.shape == Shape::List {
        return Some("of a list, the text of the whole is captured".to_owned());
    }
    if watched.kind == "bool" && 1 < watched.domains {
        return Some(
            "of a domain over a domain over boolean `t` is captured, and `true` is shown".to_owned(),
        );
    }
    let is_same =
        watched.is_of_the_relation_of(shown) && watched.name == shown.name && shown.shape == Shape::Value;
    if is_same {
        return None;
    }
    if watched.kind != shown.kind && family(watched) != family(shown) {
        return Some("their texts differ".to_owned());
    }
    let has_scale = matches!(watched.kind.as_str(), "numeric" | "bpchar");
    if has_scale
        && (watched.modifier != shown.modifier || (watched.kind == "numeric" && watched.modifier < 0))
    {
        return Some(format!(
            "values of type {} that are equal have several texts (digits behind the point, blanks), unless both have one and \
             the same length or scale",
            watched.kind
        ));
    }
    let folds = |column: &SpelledColumn| {
        matches!(column.kind.as_str(), "citext" | "interval" | "float4" | "float8") || column.is_folded
    };
    (!shown.is_of_view && (folds(watched) || folds(shown))).then(|| {
        format!(
            "values of types {} and {} can be equal with different texts, as `Bob` and `bob` are",
            watched.kind, shown.kind
        )
    })
}

/// Types of one family write their values alike.
fn family(column: &SpelledColumn) -> &str {
    match column.kind.as_str() {
        "int2" | "int4" | "int8" | "oid" => "integer",
        "text" | "varchar" | "name" | "citext" => "text",
        _ if column.is_enum => "text",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: &str, modifier: i32) -> SpelledColumn {
        SpelledColumn {
            generated: String::new(),
            name: "a".to_owned(),
            number: 1,
            relation: 1,
            is_of_view: false,
            kind: kind.to_owned(),
            is_enum: kind.ends_with("_enum"),
            modifier,
            domains: 0,
            shape: Shape::Value,
            is_folded: false,
        }
    }

    #[test]
    fn only_types_that_write_alike_are_compared() {
        for (one, other, alike) in [
            (("int4", -1), ("int8", -1), true),
            (("text", -1), ("varchar", 20), true),
            (("color_enum", -1), ("text", -1), true),
            (("uuid", -1), ("uuid", -1), true),
            (("timestamptz", -1), ("timestamptz", 3), true),
            (("numeric", 10), ("numeric", 10), true),
            (("bpchar", 9), ("bpchar", 9), true),
            (("uuid", -1), ("text", -1), false),
            (("int4", -1), ("numeric", -1), false),
            (("bpchar", 9), ("text", -1), false),
            (("bpchar", 9), ("bpchar", 10), false),
            (("numeric", 10), ("numeric", 11), false),
            (("numeric", -1), ("numeric", -1), false),
            (("citext", -1), ("citext", -1), false),
            (("citext", -1), ("text", -1), false),
            (("float8", -1), ("float8", -1), false),
            (("interval", -1), ("interval", -1), false),
            (("inet", -1), ("inet", -1), true),
            (("inet", -1), ("cidr", -1), false),
            (("inet", -1), ("text", -1), false),
            (("date", -1), ("timestamptz", -1), false),
        ] {
            let shown = SpelledColumn { relation: 2, ..of(other.0, other.1) };
            assert_eq!(difference(&of(one.0, one.1), &shown).is_none(), alike, "{one:?} {other:?}");
        }
    }

    #[test]
    fn a_column_has_the_text_of_itself() {
        for kind in ["numeric", "citext", "float8", "interval", "bpchar", "bool", "inet"] {
            assert_eq!(difference(&of(kind, -1), &of(kind, -1)), None, "{kind}");
        }
        let list = SpelledColumn { shape: Shape::List, ..of("int4", -1) };
        assert!(difference(&list, &list).is_some(), "the list itself is no element of it");
        assert_eq!(difference(&SpelledColumn { relation: 2, ..of("int4", -1) }, &list), None);
        let deep = SpelledColumn { domains: 2, ..of("bool", -1) };
        assert!(difference(&deep, &deep).is_some());
    }
}
