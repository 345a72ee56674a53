-- Namespaces share what is captured, and nothing else: the same stream, or the same id of a command, in another namespace is
-- another one. What earlier versions recorded has no namespace, and counts for whoever has the stream.
alter table cachekeeper.writer add column namespace text not null default '';
alter table cachekeeper.writer drop constraint writer_pkey, add primary key (namespace, stream);
alter table cachekeeper.applied add column namespace text not null default '';
alter table cachekeeper.applied drop constraint applied_pkey, add primary key (namespace, stream, id);
drop index cachekeeper.applied_at;
create index applied_at on cachekeeper.applied (namespace, stream, at);

-- Which namespaces use this schema, and the trees of tables that they watch (0: the schema itself). So that removing one
-- leaves what others use.
create table cachekeeper.used_by (
    namespace text not null,
    root oid not null,
    primary key (namespace, root)
);
comment on table cachekeeper.used_by is 'Cachekeeper: which namespaces watch which tables';
