//! The trigger functions of one captured tree of tables, as SQL text.
//!
//! They belong to whoever installs them and run with their rights, because the writer has none on the outbox. Every name and
//! operator is qualified, so that nothing of the writer's search path is called: pinning it would cost each row of a bulk
//! write 2 of some 10 µs. What cannot be qualified (`in`, `is distinct from`, `case x when`) is not used, and nothing that a
//! user defines is evaluated but the output functions of types, which take a superuser to make.
//!
//! A writer never fails and never waits because of them: the first row of each command does what could fail in a block that
//! catches it, without writing, so that no transaction id is used up; the rows after it are written plainly.

use crate::stores::postgres::statement::quote;

/// Limits that are written into the trigger functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureLimits {
    /// Rows of one command above which "the whole table" is meant.
    pub max_rows: u64,
    /// Units of 1 KiB in the outbox above which nothing more is written; a row takes at least one.
    pub max_outbox: u64,
}

/// A column whose values a change carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WatchedColumn {
    /// Its name.
    pub name: String,
    /// Its type, without length, or the base type of a domain.
    pub kind: String,
    /// Whether its type came with the server: only then a cast to text cannot be somebody's function.
    pub is_built_in: bool,
}

/// What a capture's functions are made of.
#[derive(Debug)]
pub(crate) struct Definition<'a> {
    /// The capture's number.
    pub capture: i32,
    /// Of its columns.
    pub version: i32,
    /// The columns that a change carries, in this order.
    pub columns: &'a [WatchedColumn],
    /// The limits.
    pub limits: &'a CaptureLimits,
    /// False: the kill switch, functions that do nothing.
    pub is_on: bool,
    /// By the rows of a statement together instead of one by one.
    pub by_statement: bool,
}

/// Types whose text no setting shapes.
const PLAIN: [&str; 8] =
    ["bigint", "boolean", "character varying", "integer", "smallint", "text", "uuid", "character"];
/// Of those, types whose text is short.
const SHORT: [&str; 5] = ["bigint", "boolean", "integer", "smallint", "uuid"];
const PINS: &str = "set search_path = pg_catalog, pg_temp set timezone = 'UTC' set datestyle = 'ISO, MDY' \
     set intervalstyle = 'iso_8601' set extra_float_digits = 1 set bytea_output = 'hex' set lc_monetary = 'C'";
/// Bytes of the keys of one row above which "the whole table" is meant.
const KEY_BYTES_MAX: u32 = 8_192;
/// Bytes of the stored keys of an old and a new row above which they are not even read.
const STORED_BYTES_MAX: u32 = 2 * KEY_BYTES_MAX;
/// Most rows of a statement that share a row of the outbox.
const CHUNK: u32 = 64;
/// Bytes of keys that a row of the outbox holds at most, where it holds several.
const CHUNK_BYTES: u32 = 65_536;

/// The function that the triggers of a capture call.
pub(crate) fn name(capture: i32) -> String {
    format!("cachekeeper.capture_{capture}")
}

/// The function that is called when a table is emptied.
pub(crate) fn truncate_name(capture: i32) -> String {
    format!("cachekeeper.truncate_{capture}")
}

impl Definition<'_> {
    /// The statements that create or replace the functions and the marker that they move where they cannot write.
    pub(crate) fn statements(&self) -> Vec<String> {
        let (capture, truncate) = (name(self.capture), truncate_name(self.capture));
        let marker = format!("cachekeeper.uncaptured_{}", self.capture);
        let unlogged = format!(
            "do $$ begin if pg_catalog.current_setting('server_version_num')::int >= 150000 \
             then alter sequence {marker} set unlogged; end if; end $$"
        );
        vec![
            format!("create sequence if not exists {marker}"),
            unlogged,
            self.function(&capture, &if self.by_statement { self.by_statement() } else { self.by_row() }),
            self.function(&truncate, &self.truncate()),
            format!("revoke all on function {capture}(), {truncate}() from public"),
        ]
    }

    fn function(&self, name: &str, body: &str) -> String {
        let body = if self.is_on { body } else { "begin\n  return null;\nend" };
        let is_plain = self.columns.iter().all(|column| PLAIN.contains(&column.kind.as_str()));
        // The transition tables of a statement are joined and grouped, which costs a statement the pinned path once.
        let pins = if is_plain && !self.by_statement { "" } else { PINS };
        format!(
            "create or replace function {name}() returns trigger language plpgsql security definer {pins}\n\
             as $capture$\n{body}\n$capture$"
        )
    }

    /// What is done once in a transaction before the first row is written: whatever could keep rows from being written fails
    /// here. Nobody's lock on the outbox is waited for, and the locks that are taken, on it and on the sequence that counts, keep
    /// others from changing them until the transaction ends.
    fn prepare(&self) -> String {
        "      if pg_catalog.current_setting('cachekeeper.outbox', true) operator(pg_catalog.=) 'held' then
        null;
      else
        lock table cachekeeper.outbox in row exclusive mode nowait;
        insert into cachekeeper.outbox (capture, version, keys) select 0, 0, null where false;
        note := pg_catalog.nextval('cachekeeper.outbox_count');
        note := pg_catalog.set_config('cachekeeper.outbox', 'held', true);
      end if;"
            .to_owned()
    }

    /// What is done where something failed: the whole table is meant, and if that cannot be written, a marker tells that
    /// something is missing.
    fn give_up(&self) -> String {
        format!(
            "      begin
        if pg_catalog.current_setting('cachekeeper.outbox', true) operator(pg_catalog.=) 'held' then
          null;
        else
          lock table cachekeeper.outbox in row exclusive mode nowait;
        end if;
        insert into cachekeeper.outbox (capture, version, keys) values ({0}, {1}, null);
      exception when others then
        begin
          note := pg_catalog.nextval('cachekeeper.uncaptured_{0}');
          note := pg_catalog.nextval('cachekeeper.uncaptured');
        exception when others then
          null;
        end;
      end;",
            self.capture, self.version
        )
    }

    /// A command is known by its number in the transaction, which its rows carry. Of a row that was inserted in the same
    /// transaction, the number is one of a pair of commands and means nothing beside others, so it is kept apart.
    fn by_row(&self) -> String {
        let keys = self.keys_of_row();
        let (id, version, most) = (self.capture, self.version, self.limits.max_rows);
        let enough = most.saturating_add(1);
        format!(
            "declare
  command pg_catalog.text;
  note pg_catalog.text;
  seen pg_catalog.int8 := 1;
  size pg_catalog.int8;
  touched pg_catalog.text[];
begin
  if tg_op operator(pg_catalog.<>) 'DELETE' then
    command := new.cmin;
  elsif pg_catalog.age(old.xmin) operator(pg_catalog.>) 0 then
    command := old.cmax;
  else
    command := pg_catalog.concat(old.xmin, '.', old.cmax);
  end if;
  if pg_catalog.current_setting('cachekeeper.command_{id}', true) operator(pg_catalog.=) command then
    seen := pg_catalog.current_setting('cachekeeper.seen_{id}', true)::pg_catalog.int8 operator(pg_catalog.+) 1;
    if seen operator(pg_catalog.>) {enough} then
      return null;
    end if;
{keys}
    note := pg_catalog.set_config('cachekeeper.seen_{id}', seen::pg_catalog.text, true);
  else
    begin
{prepare}
{keys}
      note := pg_catalog.set_config('cachekeeper.seen_{id}', '1', true);
      note := pg_catalog.set_config('cachekeeper.command_{id}', command, true);
    exception when others then
{give_up}
      note := pg_catalog.set_config('cachekeeper.seen_{id}', '{enough}', true);
      note := pg_catalog.set_config('cachekeeper.command_{id}', command, true);
      return null;
    end;
  end if;
  if seen operator(pg_catalog.>) {most} then
    touched := null;
  end if;{bound}
  if pg_catalog.nextval('cachekeeper.outbox_count') operator(pg_catalog.<=) {max_outbox} then
    insert into cachekeeper.outbox (capture, version, keys) values ({id}, {version}, touched);
  end if;
  return null;
end",
            prepare = self.prepare(),
            give_up = self.give_up(),
            bound = self.bound(),
            max_outbox = self.limits.max_outbox,
        )
    }

    /// `touched`: the watched columns of the old and of the new row, once where they are equal; null where they are too large.
    fn keys_of_row(&self) -> String {
        let (old, new) = (self.values("old"), self.values("new"));
        let changed = format!(
            "    if tg_op operator(pg_catalog.=) 'DELETE' then
      touched := {old};
    else
      touched := {new};
      if tg_op operator(pg_catalog.=) 'UPDATE' and {old} operator(pg_catalog.<>) touched then
        touched := {old} operator(pg_catalog.||) touched;
      end if;
    end if;"
        );
        let (old, new) = (self.stored_size("old"), self.stored_size("new"));
        match old.zip(new) {
            None => changed,
            // Looked at before the values are read, which may be far away and large.
            Some((old, new)) => format!(
                "    size := 0;
    if tg_op operator(pg_catalog.<>) 'INSERT' then
      size := {old};
    end if;
    if tg_op operator(pg_catalog.<>) 'DELETE' then
      size := size operator(pg_catalog.+) {new};
    end if;
    if size operator(pg_catalog.<=) {STORED_BYTES_MAX} then
{changed}
      size := pg_catalog.octet_length(pg_catalog.array_to_string(touched, ''));
    end if;"
            ),
        }
    }

    /// Counts what a large key takes of the outbox; one that is too large means the whole table, and the rest of its command too.
    fn bound(&self) -> String {
        if self.columns.iter().all(is_short) {
            return String::new();
        }
        format!(
            "
  if touched is not null and size operator(pg_catalog.>) {KEY_BYTES_MAX} then
    touched := null;
  end if;
  if touched is null then
    note := pg_catalog.set_config('cachekeeper.seen_{id}', '{enough}', true);
    size := 0;
  end if;
  while size operator(pg_catalog.>) 1024 loop
    note := pg_catalog.nextval('cachekeeper.outbox_count');
    size := size operator(pg_catalog.-) 1024;
  end loop;",
            id = self.capture,
            enough = self.limits.max_rows.saturating_add(1),
        )
    }

    /// What the columns of a row take where they are stored; none: never much.
    fn stored_size(&self, row: &str) -> Option<String> {
        let large = self.columns.iter().filter(|column| !is_short(column));
        let sizes: Vec<String> = large
            .map(|column| {
                let size = match column.kind.as_str() {
                    "text" | "character varying" => "pg_catalog.octet_length",
                    _ => "pg_catalog.pg_column_size",
                };
                format!("coalesce({size}({row}.{}), 0)", quote(&column.name))
            })
            .collect();
        (!sizes.is_empty()).then(|| sizes.join(" operator(pg_catalog.+) "))
    }

    /// The texts of the watched columns, compared byte by byte.
    fn values(&self, row: &str) -> String {
        let texts: Vec<String> = self
            .columns
            .iter()
            .map(|column| {
                let field = format!("{row}.{}", quote(&column.name));
                let is_cast = !matches!(column.kind.as_str(), "character" | "inet");
                let text = if column.is_built_in && is_cast {
                    format!("{field}::pg_catalog.text")
                } else {
                    // The output function: a cast could be somebody's function, would lose the blanks of `character`, and would
                    // add a mask to each `inet`.
                    format!(
                        "case when pg_catalog.num_nulls({field}) operator(pg_catalog.=) 0 then pg_catalog.concat({field}) end"
                    )
                };
                format!("({text}) collate pg_catalog.\"C\"")
            })
            .collect();
        if texts.is_empty() { "array['']".to_owned() } else { format!("array[{}]", texts.join(", ")) }
    }

    fn truncate(&self) -> String {
        format!(
            "declare
  note pg_catalog.text;
begin
{}
  return null;
end",
            self.give_up()
        )
    }

    /// Removing equal rows from both sides leaves the same change, whichever old row is paired with whichever new one. Above
    /// the limit the rows are not looked at any further. `row(o.*)`, because a bare `o` would be a column of that name, where
    /// there is one.
    fn by_statement(&self) -> String {
        let (id, version, most) = (self.capture, self.version, self.limits.max_rows);
        let enough = most.saturating_add(1);
        let (old, new) = (self.values("o"), self.values("n"));
        format!(
            "declare
  seen bigint := 0;
  size bigint;
  step int;
  touched text[];
  note text;
begin
  begin
    if tg_op = 'UPDATE' then
      select count(*), array_agg(distinct k.touched) filter (where not p.is_same) into seen, touched
      from (select o.touched as before, n.touched as after, o.image *= n.image as is_same
            from (select row_number() over () as place, row(o.*) as image, {old} as touched from old_rows o limit {enough}) o
            join (select row_number() over () as place, row(n.*) as image, {new} as touched from new_rows n limit {enough}) n
            using (place)) p
      cross join lateral (select p.before as touched union all select p.after where p.after <> p.before) k;
    elsif tg_op = 'INSERT' then
      select count(*), array_agg(distinct s.touched) into seen, touched
      from (select {new} as touched from new_rows n limit {enough}) s;
    else
      select count(*), array_agg(distinct s.touched) into seen, touched
      from (select {old} as touched from old_rows o limit {enough}) s;
    end if;
    if seen <= {most} and touched is null then
      return null;
    end if;
    select max(octet_length(array_to_string(touched[i:i][:], ''))) into size
    from generate_series(1, case when seen <= {most} then array_length(touched, 1) else 0 end) i;
{prepare}
  exception when others then
{give_up}
    return null;
  end;
  if seen > {most} or size > {KEY_BYTES_MAX} then
    insert into cachekeeper.outbox (capture, version, keys) select {id}, {version}, null
    where nextval('cachekeeper.outbox_count') <= {max_outbox};
    return null;
  end if;
  step := least({CHUNK}, {CHUNK_BYTES} / greatest(size, 1));
  insert into cachekeeper.outbox (capture, version, keys)
  select {id}, {version}, array(select k from unnest(touched[i:i + step - 1][:]) k)
  from generate_series(1, array_length(touched, 1), step) i
  where (select max(nextval('cachekeeper.outbox_count')) from generate_series(i, least(i + step - 1, array_length(touched, 1)))) <= {max_outbox};
  return null;
end",
            prepare = self.prepare(),
            give_up = self.give_up(),
            max_outbox = self.limits.max_outbox,
        )
    }
}

fn is_short(column: &WatchedColumn) -> bool {
    column.is_built_in && SHORT.contains(&column.kind.as_str())
}
