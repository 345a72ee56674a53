//! The trigger function of one captured tree of tables, as SQL text.
//!
//! It belongs to whoever installs it and runs with their rights, because the writer has none on the outbox. Its
//! settings are pinned: key text must not depend on who writes (`TimeZone` and its kin).

use crate::stores::postgres::statement::quote;

/// Limits that are written into the trigger functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureLimits {
    /// Rows of one statement above which "the whole table" is meant.
    pub max_rows: u64,
    /// Keys in the outbox above which nothing more is written.
    pub max_outbox: u64,
}

/// A column whose values a change carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WatchedColumn {
    /// Its name.
    pub name: String,
    /// Its type, without length, or the base type of a domain.
    pub kind: String,
}

/// What the events' triggers are called, the event they fire on, and the transition tables they need.
pub(crate) const TRIGGERS: [(&str, &str, &str); 4] = [
    ("cachekeeper_delete", "delete", "referencing old table as old_rows"),
    ("cachekeeper_insert", "insert", "referencing new table as new_rows"),
    ("cachekeeper_truncate", "truncate", ""),
    ("cachekeeper_update", "update", "referencing old table as old_rows new table as new_rows"),
];

/// Types whose text no setting shapes.
const PLAIN: [&str; 8] =
    ["bigint", "boolean", "character varying", "integer", "smallint", "text", "uuid", "character"];
const PINS: &str = "set timezone = 'UTC' set datestyle = 'ISO, MDY' set intervalstyle = 'iso_8601' \
     set extra_float_digits = 1 set bytea_output = 'hex'";

/// The function's name.
pub fn name(capture: i32) -> String {
    format!("cachekeeper.capture_{capture}")
}

/// The statement that creates the function. `is_on` false: the kill switch, a function that does nothing.
pub fn create(
    (capture, version): (i32, i32),
    columns: &[WatchedColumn],
    limits: &CaptureLimits,
    is_on: bool,
) -> String {
    let body = if is_on {
        body((capture, version), columns, limits)
    } else {
        "begin\n  return null;\nend".to_owned()
    };
    let is_plain = columns.iter().all(|column| PLAIN.contains(&column.kind.as_str()));
    let pins = if is_plain { "" } else { PINS };
    format!(
        "create or replace function {}() returns trigger language plpgsql security definer\n\
         set search_path = pg_catalog, pg_temp {pins}\nas $capture$\n{body}\n$capture$",
        name(capture)
    )
}

fn body((capture, version): (i32, i32), columns: &[WatchedColumn], limits: &CaptureLimits) -> String {
    let most = limits.max_rows;
    let enough = most.saturating_add(1);
    let (old, new) = (key_array(columns, "o"), key_array(columns, "n"));
    // Removing equal rows from both sides leaves the same change, whichever old row is paired with whichever new one.
    // Above the limit the rows are not looked at any further: the whole table is meant. `row(o.*)`, because a bare `o` would be
    // a column of that name, where there is one.
    format!(
        "declare
  seen bigint := 0;
  is_same boolean;
  before text[];
  after text[];
  touched text[];
begin
  begin
    if tg_op = 'UPDATE' then
      -- One row is by far the most frequent case, and needs no pairing.
      select count(*), bool_and(o.image *= n.image), min(o.touched), min(n.touched) into seen, is_same, before, after
      from (select row(o.*) as image, {old} as touched from old_rows o limit 2) o
      cross join (select row(n.*) as image, {new} as touched from new_rows n limit 2) n;
      if seen = 1 then
        if is_same then
          return null;
        end if;
        touched := case when before = after then array[after] else array[before, after] end;
      elsif seen > 1 then
        select count(*), array_agg(distinct k.touched) filter (where not p.is_same) into seen, touched
        from (select o.touched as before, n.touched as after, o.image *= n.image as is_same
              from (select row_number() over () as place, row(o.*) as image, {old} as touched from old_rows o limit {enough}) o
              join (select row_number() over () as place, row(n.*) as image, {new} as touched from new_rows n limit {enough}) n
              using (place)) p
        cross join lateral (select p.before as touched union all select p.after where p.after is distinct from p.before) k;
      end if;
    elsif tg_op = 'INSERT' then
      select count(*), array_agg(distinct s.touched) into seen, touched
      from (select {new} as touched from new_rows n limit {enough}) s;
    elsif tg_op = 'DELETE' then
      select count(*), array_agg(distinct s.touched) into seen, touched
      from (select {old} as touched from old_rows o limit {enough}) s;
    else
      seen := {enough};
    end if;
  exception when others then
    -- A watched column may have been dropped or changed since: better too much than too little.
    seen := {enough};
  end;
  if seen > {most} then
    touched := null;
  elsif touched is null then
    return null;
  end if;
  insert into cachekeeper.outbox (capture, version, keys) select {capture}, {version}, touched
  where nextval('cachekeeper.outbox_count') <= {max_outbox};
  if seen > 16 and touched is not null then
    perform setval('cachekeeper.outbox_count', nextval('cachekeeper.outbox_count') + seen);
  end if;
  return null;
end",
        max_outbox = limits.max_outbox,
    )
}

fn key_array(columns: &[WatchedColumn], row: &str) -> String {
    let texts: Vec<String> = columns
        .iter()
        .map(|column| {
            let field = format!("{row}.{}", quote(&column.name));
            if column.kind == "character" {
                // A cast to text would lose the blanks that its binary form has.
                format!("case when {field} is not null then concat({field}) end")
            } else {
                format!("{field}::text")
            }
        })
        .collect();
    if texts.is_empty() { "array['']".to_owned() } else { format!("array[{}]", texts.join(", ")) }
}
