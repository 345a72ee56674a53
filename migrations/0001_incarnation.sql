-- One row that lives as long as one uninterrupted life of the primary (DESIGN R2). The table is unlogged: a crash,
-- a promotion and a physical restore empty it, and a standby cannot read it. The recorded start time and database
-- tell a clean restart, a cold copy and a clone, which unlogged tables survive.
create unlogged table cachekeeper.incarnation (
    only_row boolean primary key default true check (only_row),
    id uuid not null,
    started timestamptz not null,
    db oid not null
);
comment on table cachekeeper.incarnation is 'Cachekeeper: the present life of this primary; see the migrations of cachekeeper';
