-- Run once, by the image of Postgres, as the superuser: a small shop with an owner, and a role for the worker that may only read it.
create role shop login password 'shop';
create role cache login password 'cache';
alter database shop owner to shop;
revoke temporary on database shop from public;
grant temporary on database shop to cache;

set role shop;
create table categories (id int primary key, name text not null);
create table products (
  id int primary key,
  category_id int not null references categories,
  name text not null,
  price_cents int not null,
  updated_at timestamptz not null default now()
);
create index on products (category_id);
insert into categories values (1, 'Tea'), (2, 'Light'), (3, 'Garden');
insert into products (id, category_id, name, price_cents)
  select n, 1 + n % 3, 'Product ' || n, 100 * n from generate_series(1, 1000) n;
grant select on categories, products to cache;
