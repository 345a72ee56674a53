//! The trigger functions of one captured tree of tables, as SQL text.
//!
//! They belong to whoever installs them and run with their rights, because the writer has none on the outbox. Every name and
//! operator is qualified, so that nothing of the writer's search path is called: pinning it would cost each row of a bulk
//! write 2 of some 10 µs. What cannot be qualified (`in`, `is distinct from`, `case x when`) is not used, and nothing that a
//! user defines is evaluated but the output functions of types, which take a superuser to make.
//!
//! A writer never fails and never waits because of them: the first row of each command does what could fail in a block that
//! catches it, without writing, so that no transaction id is used up; the rows after it are written plainly, because
//! `cachekeeper.begin_capture` has seen that nothing about the outbox can make that fail.
//!
//! What is known of a command stands in settings, which savepoints take back as they take back rows. Any session may set
//! them, so they are never trusted where a change would be lost: rows are left out only where a sequence, whose value in a
//! session nobody else can set, says that this transaction has noted the whole table.

use super::reliance::{WatchedColumn, delimiter, reliance};
use crate::stores::postgres::statement::quote;

/// Limits that are written into the trigger functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureLimits {
    /// Rows of one statement of an application above which "the whole table" is meant.
    pub max_rows: u64,
    /// Units of 1 KiB in the outbox above which nothing more is written; a row takes at least one.
    pub max_outbox: u64,
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
pub(super) const KEY_BYTES_MAX: u32 = 8_192;
/// Bytes of the stored keys of an old and a new row above which they are not even read.
const STORED_BYTES_MAX: u32 = 2 * KEY_BYTES_MAX;
/// The function that the triggers of a capture call.
pub(crate) fn name(capture: i32) -> String {
    format!("cachekeeper.capture_{capture}")
}

/// The function that is called when a table is emptied.
pub(crate) fn truncate_name(capture: i32) -> String {
    format!("cachekeeper.truncate_{capture}")
}

impl Definition<'_> {
    /// The statements that create or replace the functions, the marker that they move where they cannot write, and the sequence
    /// that says in which transaction of a session the whole table was noted.
    pub(crate) fn statements(&self) -> Vec<String> {
        let (capture, truncate) = (name(self.capture), truncate_name(self.capture));
        let sequences = [format!("uncaptured_{}", self.capture), format!("whole_{}", self.capture)];
        let create =
            |sequence: &String| format!("create sequence if not exists cachekeeper.{sequence} cycle");
        let mut statements: Vec<String> = sequences.iter().map(create).collect();
        statements.extend([
            self.function(&capture, &if self.by_statement { self.by_statement() } else { self.by_row() }),
            self.function(&truncate, &self.truncate()),
            format!("revoke all on function {capture}(), {truncate}() from public"),
        ]);
        statements
    }

    fn function(&self, name: &str, body: &str) -> String {
        let body = if self.is_on { body } else { "begin\n  return null;\nend" };
        let is_plain = self.columns.iter().all(|column| PLAIN.contains(&column.kind.as_str()));
        // The transition tables of a statement are joined and grouped, which costs a statement the pinned path once.
        let pins = if is_plain && !self.by_statement { "" } else { PINS };
        let text = format!("\n{}\n{body}\n", reliance(self.columns));
        let quote = delimiter(&text);
        format!(
            "create or replace function {name}() returns trigger language plpgsql security definer {pins}\n\
             as {quote}{text}{quote}"
        )
    }

    /// What could keep rows from being written fails here. Nobody's lock on the outbox is waited for; the lock that is taken keeps
    /// others from changing it until the transaction ends, so `begin_capture` comes after it.
    pub(super) const PREPARE: &'static str =
        "      lock table cachekeeper.outbox in row exclusive mode nowait;
      place := cachekeeper.begin_capture();";

    /// Whether the outbox may be written, asked right before it is: revoking a right waits for no lock, and a session hears of it
    /// whenever it takes one.
    pub(super) const IS_ALLOWED: &'static str =
        "pg_catalog.has_table_privilege('cachekeeper.outbox'::pg_catalog.regclass, 'insert')";

    /// What is done where something failed: the whole table is meant, and if that cannot be written, markers tell that something
    /// is missing. A constraint that is deferred would fail later, so nothing is written unless the outbox is as it was made.
    pub(super) fn give_up(&self) -> String {
        format!(
            "      begin
        if place is null then
          raise exception 'rows cannot be written to cachekeeper.outbox';
        end if;
        {insert}
      exception when others then
{tell}
      end;
{whole}",
            insert = self.insert("null"),
            tell = self.tell(),
            whole = self.note_whole(),
        )
    }

    /// What is done where the outbox may not be written any more, or is full: nothing more is written to it, so that it fills no
    /// disk while no worker reads it.
    pub(super) fn leave_out(&self) -> String {
        format!("{}\n{}", self.tell(), self.note_whole())
    }

    /// Moves the markers that tell that something is missing; where one of them cannot be moved, a third tells it of all captures.
    fn tell(&self) -> String {
        format!(
            "        begin
          note := cachekeeper.move_marker('cachekeeper.uncaptured_{id}');
          note := cachekeeper.move_marker('cachekeeper.uncaptured');
        exception when others then
          begin
            note := cachekeeper.move_marker('cachekeeper.uncaptured_0');
          exception when others then
            null;
          end;
        end;",
            id = self.capture,
        )
    }

    /// The rest of the transaction need not be captured. Fails for nobody: without the note every row is tried.
    pub(super) fn note_whole(&self) -> String {
        format!(
            "      begin
        note := pg_catalog.setval('cachekeeper.whole_{0}', pg_catalog.pg_current_xact_id()::pg_catalog.text::pg_catalog.int8);
        note := pg_catalog.set_config('cachekeeper.command_{0}', 'whole', true);
      exception when others then
        null;
      end;",
            self.capture
        )
    }

    /// Every column is given: a default may be anything.
    pub(super) fn insert(&self, keys: &str) -> String {
        format!(
            "insert into cachekeeper.outbox (xid, capture, version, keys, at)
          values (pg_catalog.pg_current_xact_id(), {}, {}, {keys}, pg_catalog.clock_timestamp());",
            self.capture, self.version
        )
    }

    /// A command is known by its number in the transaction, which its rows carry. Of a row that was inserted in the same
    /// transaction, the number is one of a pair of commands and means nothing beside others, so it is kept apart.
    fn by_row(&self) -> String {
        let (id, most) = (self.capture, self.limits.max_rows);
        format!(
            "declare
  command pg_catalog.text;
  note pg_catalog.text;
  place pg_catalog.int8;
  seen pg_catalog.int8 := 1;
  size pg_catalog.int8;
  touched pg_catalog.text[];
begin
  note := pg_catalog.current_setting('cachekeeper.command_{id}', true);
{is_whole}
  if tg_op operator(pg_catalog.<>) 'DELETE' then
    command := new.cmin;
  elsif pg_catalog.age(old.xmin) operator(pg_catalog.>) 0 then
    command := old.cmax;
  else
    command := pg_catalog.concat(old.xmin, '.', old.cmax);
  end if;
  if note operator(pg_catalog.=) command then
    note := pg_catalog.current_setting('cachekeeper.seen_{id}', true);
    if pg_catalog.octet_length(note) operator(pg_catalog.<) 9
        and pg_catalog.translate(note, '0123456789', '') operator(pg_catalog.=) '' and note operator(pg_catalog.<>) '' then
      seen := note::pg_catalog.int8 operator(pg_catalog.+) 1;
    else
      seen := {enough};
    end if;
{keys}
    note := pg_catalog.set_config('cachekeeper.seen_{id}', seen::pg_catalog.text, true);
    if pg_catalog.has_sequence_privilege('cachekeeper.outbox_count'::pg_catalog.regclass, 'usage, update') then
      place := pg_catalog.nextval('cachekeeper.outbox_count');
    end if;
  else
    begin
{prepare}
{count_on}
{keys}
    exception when others then
{give_up}
      return null;
    end;
  end if;
{bound}
  if touched is null or seen operator(pg_catalog.>) {most} then
    touched := null;
{whole}
  end if;
{write}
  return null;
end",
            is_whole = self.is_whole(),
            enough = most.saturating_add(1),
            keys = self.keys_of_row(),
            prepare = Self::PREPARE,
            count_on = self.count_on(),
            give_up = self.give_up(),
            bound = self.bound(),
            whole = self.note_whole(),
            write = self.write_row(),
        )
    }

    /// Writes a row of the outbox, if there is room and it may be written. Below 0 is the place of a transaction with an old snapshot,
    /// in which not everything could be seen.
    fn write_row(&self) -> String {
        format!(
            "  if place operator(pg_catalog.>) 0 and place operator(pg_catalog.<=) {max_outbox} and {is_allowed} then
    {insert}
  elsif place operator(pg_catalog.<) 0 and place operator(pg_catalog.>=) -{max_outbox} then
    begin
      {insert}
    exception when others then
{give_up}
    end;
  else
{leave_out}
  end if;",
            leave_out = self.leave_out(),
            is_allowed = Self::IS_ALLOWED,
            max_outbox = self.limits.max_outbox,
            insert = self.insert("touched"),
            give_up = self.give_up(),
        )
    }

    /// The end of it where this transaction has noted the whole table. The setting says so for this savepoint, and the
    /// sequence that the setting is true.
    pub(super) fn is_whole(&self) -> String {
        format!(
            "  if note operator(pg_catalog.=) 'whole' then
    begin
      if pg_catalog.currval('cachekeeper.whole_{0}')::pg_catalog.text
          operator(pg_catalog.=) pg_catalog.pg_current_xact_id()::pg_catalog.text then
        return null;
      end if;
    exception when others then
      null;
    end;
  end if;",
            self.capture
        )
    }

    /// Goes on with the count of the application's statement, of which there may be many commands: those of functions, of triggers
    /// (which stand between the rows of the command that they belong to), and of cascades.
    fn count_on(&self) -> String {
        format!(
            "      if pg_catalog.current_setting('cachekeeper.statement_{0}', true) operator(pg_catalog.=) {statement} then
        seen := pg_catalog.current_setting('cachekeeper.seen_{0}', true)::pg_catalog.int8 operator(pg_catalog.+) 1;
      end if;
      note := pg_catalog.concat(
        pg_catalog.set_config('cachekeeper.statement_{0}', {statement}, true),
        pg_catalog.set_config('cachekeeper.seen_{0}', seen::pg_catalog.text, true),
        pg_catalog.set_config('cachekeeper.command_{0}', command, true));",
            self.capture,
            statement = "pg_catalog.encode(pg_catalog.timestamptz_send(pg_catalog.statement_timestamp()), 'hex')",
        )
    }

    /// `touched`: the watched columns of the old and of the new row, once where they are equal; null where they are too large.
    fn keys_of_row(&self) -> String {
        let (old, new) = (self.values("old"), self.values("new"));
        let unchanged = self.unchanged().map_or_else(String::new, |same| {
            format!(
                "tg_op operator(pg_catalog.=) 'UPDATE' and {same} then
      touched := {new};
    elsif "
            )
        });
        let changed = format!(
            "    if {unchanged}tg_op operator(pg_catalog.=) 'UPDATE' then
      touched := {new};
      if {old} operator(pg_catalog.<>) touched then
        touched := {old} operator(pg_catalog.||) touched;
      end if;
    elsif tg_op operator(pg_catalog.=) 'INSERT' then
      touched := {new};
    else
      touched := {old};
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

    /// A quicker look than at their texts, whether the watched columns of both rows are equal; none: only the texts tell.
    fn unchanged(&self) -> Option<String> {
        let one = |column: &WatchedColumn| {
            let name = quote(&column.name);
            format!("old.{name} operator(pg_catalog.=) new.{name}")
        };
        let all = self.columns.iter().map(one).collect::<Vec<_>>().join(" and ");
        (!all.is_empty() && self.columns.iter().all(is_short)).then_some(all)
    }

    /// Counts what a large key takes of the outbox, and of the rows of its statement; one that is too large means the whole table.
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
    size := 0;
  elsif size operator(pg_catalog.>) 1024 then
    seen := seen operator(pg_catalog.+) (size operator(pg_catalog./) 1024);
    note := pg_catalog.set_config('cachekeeper.seen_{id}', seen::pg_catalog.text, true);
  end if;
  while size operator(pg_catalog.>) 1024 loop
    note := pg_catalog.nextval('cachekeeper.outbox_count');
    size := size operator(pg_catalog.-) 1024;
  end loop;",
            id = self.capture,
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
    pub(super) fn values(&self, row: &str) -> String {
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
  place pg_catalog.int8;
begin
  begin
{prepare}
  exception when others then
    place := null;
  end;
{give_up}
  return null;
end",
            prepare = Self::PREPARE,
            give_up = self.give_up(),
        )
    }
}

fn is_short(column: &WatchedColumn) -> bool {
    column.is_built_in && SHORT.contains(&column.kind.as_str())
}
