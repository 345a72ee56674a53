//! The trigger function of a table that is written in bulk: the rows of a statement together, from its transition tables.

use super::function::{Definition, KEY_BYTES_MAX};

/// Most rows of a statement that share a row of the outbox.
const CHUNK: u32 = 64;
/// Bytes of keys that a row of the outbox holds at most, where it holds several.
const CHUNK_BYTES: u32 = 65_536;

impl Definition<'_> {
    /// Removing equal rows from both sides leaves the same change, whichever old row is paired with whichever new one; a row that moves
    /// to a partition which refuses it has no new one. Above
    /// the limit the rows are not looked at any further. `row(o.*)`, because a bare `o` would be a column of that name, where
    /// there is one.
    pub(super) fn by_statement(&self) -> String {
        let most = self.limits.max_rows;
        let enough = most.saturating_add(1);
        let (old, new) = (self.values("o"), self.values("n"));
        format!(
            "declare
  note text;
  place bigint;
  seen bigint := 0;
  size bigint;
  step int;
  touched text[];
begin
  note := current_setting('cachekeeper.command_{id}', true);
{is_whole}
  begin
    if tg_op = 'UPDATE' then
      select count(*), array_agg(distinct k.touched) filter (where p.is_same is not true) into seen, touched
      from (select o.touched as before, n.touched as after, o.image *= n.image as is_same
            from (select row_number() over () as place, row(o.*) as image, {old} as touched from old_rows o limit {enough}) o
            full join (select row_number() over () as place, row(n.*) as image, {new} as touched from new_rows n limit {enough}) n
            using (place)) p
      cross join lateral (select p.before as touched where p.before is not null
                          union all select p.after where p.after is not null and p.after is distinct from p.before) k;
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
    if seen > {most} or size > {KEY_BYTES_MAX} then
      touched := null;
    end if;
    step := least({CHUNK}, {CHUNK_BYTES} / greatest(size, 1));
    if place < 0 then
{write}
      return null;
    end if;
  exception when others then
{give_up}
    return null;
  end;
{write}
  return null;
end",
            id = self.capture,
            is_whole = self.is_whole(),
            prepare = Self::PREPARE,
            write = self.write_statement(),
            give_up = self.give_up(),
        )
    }

    /// Several keys share a row of the outbox; none of them: the whole table.
    fn write_statement(&self) -> String {
        let (id, version, max_outbox) = (self.capture, self.version, self.limits.max_outbox);
        format!(
            "  if touched is null then
{whole}
  end if;
  if touched is null and abs(place) <= {max_outbox} and {is_allowed} then
    {insert_whole}
  elsif abs(place) + array_length(touched, 1) <= {max_outbox} and {is_allowed} then
    insert into cachekeeper.outbox (xid, capture, version, keys, at)
    select pg_current_xact_id(), {id}, {version}, array(select k from unnest(touched[i:i + step - 1][:]) k), clock_timestamp()
    from generate_series(1, array_length(touched, 1), step) i
    where 0 < (select max(nextval('cachekeeper.outbox_count')) from generate_series(i, least(i + step - 1, array_length(touched, 1))));
  else
{leave_out}
  end if;",
            whole = self.note_whole(),
            leave_out = self.leave_out(),
            is_allowed = Self::IS_ALLOWED,
            insert_whole = self.insert("null"),
        )
    }
}
