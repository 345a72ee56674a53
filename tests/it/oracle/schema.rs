//! The database of a run, its roles, and the datasets that are kept of it.

use std::sync::LazyLock;

/// The worker's role. It owns what it watches, and is no superuser: rights can be taken from it.
pub const WORKER: &str = "cache";
/// The role of programs that write to the database themselves; it knows nothing of Cachekeeper.
pub const WRITER: &str = "app";

/// What the values of a dataset are made of beside rows that programs write; each has a number in `shape_history`.
pub const SHAPES: [&str; 6] = ["rate", "mood", "body", "latest", "resolved", "shown"];

/// As the superuser.
pub const ROLES: &str = "
    create role cache login; create role app login;
    grant create on database postgres to cache; grant create on schema public to cache;
    alter role cache set search_path = path_a, public;
    alter default privileges for role cache in schema public grant all on tables to app;
    alter default privileges for role cache in schema public grant all on sequences to app;";

/// As the worker's role.
pub const TABLES: &str = "
    set search_path = public;
    create table counters (id int primary key, version bigint not null default 0);
    create table groups (id int primary key, version bigint not null default 0);
    create table items (id int primary key, version bigint not null, grp int not null check (0 <= grp)) partition by range (id);
    create table items_low partition of items for values from (0) to (150);
    create table items_high partition of items for values from (150) to (300);
    create table items_rest partition of items for values from (300) to (100000);
    create table canary (id int primary key, version bigint not null default 0, divisor int not null default 1);
    create unlogged table lives (number int not null, started timestamptz not null default pg_postmaster_start_time());
    create function life() returns int language sql as $$
        select coalesce(max(number), -1) from public.lives where started = pg_postmaster_start_time() $$;
    insert into lives values (0);
    create table history (id int, version bigint, is_deleted boolean, xid xid8 default pg_current_xact_id(),
        life int default life(), at timestamptz default now());
    create table group_history (id int, version bigint, xid xid8 default pg_current_xact_id(),
        life int default life(), at timestamptz default now());
    create table shape_history (id int, version bigint, xid xid8 default pg_current_xact_id(),
        life int default life(), at timestamptz default now());
    create table command_log (seq bigserial primary key, producer text not null, id int not null, n int not null check (0 < n),
        version bigint not null, xid xid8 default pg_current_xact_id(),
        life int default life(), at timestamptz default now());
    create table trouble (code text not null, chance float not null);
    create function make_trouble() returns trigger language plpgsql as $$
        declare wanted record;
        begin
            select * into wanted from trouble where random() < chance limit 1;
            if found then raise exception 'trouble' using errcode = wanted.code; end if;
            return new;
        end $$;
    create trigger make_trouble before insert on command_log for each row execute function make_trouble();
    create constraint trigger make_trouble_at_commit after insert on command_log deferrable initially deferred
        for each row execute function make_trouble();
    create schema shop;
    create table shop.rates (version bigint not null);
    create type mood as enum ('v1');
    create table moods (mood mood not null);
    create function body() returns bigint language sql immutable as 'select 1::bigint';
    create view latest as select 1::bigint as version;
    create schema path_a; create schema path_b;
    create table path_a.resolved (version bigint not null); create table path_b.resolved (version bigint not null);
    create table shown (version bigint primary key);
    insert into shown select n from generate_series(1, 500) n;
    create policy shown on shown using (version = 1);
    alter table shown enable row level security; alter table shown force row level security;
    insert into shop.rates values (1); insert into moods values ('v1');
    insert into path_a.resolved values (1); insert into path_b.resolved values (1);
    insert into counters select n, 1 from generate_series(0, 299) n;
    insert into groups select n, 1 from generate_series(0, 9) n;
    insert into group_history select n, 1 from generate_series(0, 9) n;
    insert into shape_history select n, 1 from generate_series(0, 5) n;
    insert into canary select n from generate_series(0, 19) n;
    insert into items select n, 1, n % 10 from generate_series(0, 299) n;
    insert into history select n, 1, false from generate_series(0, 299) n;";

/// The datasets; with `CACHEKEEPER_FORMAT=hash` items are hashes.
pub static DATASETS: LazyLock<String> = LazyLock::new(|| {
    let of_items = "tags = [\"grp:{grp}\"]\n    format = \"json\"";
    assert!(AS_STRINGS.contains(of_items));
    match are_hashes() {
        true => AS_STRINGS.replace(of_items, &of_items.replace("json", "hash")),
        false => AS_STRINGS.to_owned(),
    }
});

/// Whether items are hashes in this run.
pub fn are_hashes() -> bool {
    std::env::var("CACHEKEEPER_FORMAT").is_ok_and(|format| format == "hash")
}

const AS_STRINGS: &str = r#"
    [log]
    level = "info"
    format = "json"
    [feed]
    max_rows = 200
    [dataset.item]
    query = """select i.id, i.version, i.grp, g.version as group_version, a.version as rate, m.mood, body() as body,
                   l.version as latest, r.version as resolved, s.version as shown
               from items i left join groups g on g.id = i.grp cross join shop.rates a cross join moods m cross join latest l
                   cross join resolved r cross join shown s"""
    key = "item:{id}"
    tags = ["grp:{grp}"]
    format = "json"
    ttl = "20s"
    refresh = { ahead = "50%" }
    feed = "required"
    watch = [
        { table = "items", key = { id = "id" } },
        { table = "groups", tag = "grp:{id}" },
        { table = "shop.rates", dataset = true },
        { table = "moods", dataset = true },
        { table = "resolved", dataset = true },
        { table = "shown", dataset = true },
    ]
    warm = { schedule = "*/2 * * * * *" }
    [dataset.item.write]
    statement = """
        with bumped as (update counters set version = version + 1 where id = :id returning id, version),
             noted as (insert into history (id, version, is_deleted) select id, version, false from bumped),
             logged as (insert into command_log (producer, id, n, version)
                        select :producer::text, id, :n::int, version from bumped)
        insert into items (id, version, grp) select id, version, :grp::int from bumped
        on conflict (id) do update set version = excluded.version, grp = excluded.grp"""
    [dataset.canary]
    query = "select id, version, 100 / divisor as share from canary"
    key = "canary:{id}"
    ttl = "20s"
    warm = { schedule = "*/2 * * * * *" }
    feed = "required"
    watch = [{ table = "canary", key = { id = "id" } }]
"#;
