//! The shop: its tables and rows.

/// How many of each thing.
pub const PRODUCTS: u32 = 100_000;
/// Categories.
pub const CATEGORIES: u32 = 200;
/// Users.
pub const USERS: u32 = 20_000;
/// Warehouses.
pub const WAREHOUSES: u32 = 2;

/// Creates and fills the tables.
pub const SQL: &str = "
create table categories (id int primary key, name text not null);
create table products (
    id int primary key, name text not null, price_cents int not null, category_id int not null references categories,
    sold int not null default 0, attributes jsonb not null default '{}', updated_at timestamptz not null default now()
);
create index on products (category_id);
create table reviews (id bigint primary key, product_id int not null, stars smallint not null, body text not null);
create table inventory (product_id int, warehouse_id int, quantity int not null, primary key (product_id, warehouse_id));
create table price_history (product_id int not null, changed_at timestamptz not null, price_cents int not null);
create table users (id uuid primary key, email text not null, name text not null, created_at timestamptz not null default now());
insert into categories select n, 'category ' || n from generate_series(1, 200) n;
insert into products select n, 'product ' || n, 100 + n % 9900, 1 + n % 200, (100000 / n)::int,
    jsonb_build_object('color', (array['red', 'green', 'blue'])[1 + n % 3], 'weight_grams', n % 5000)
    from generate_series(1, 100000) n;
insert into reviews select n, 1 + n % 50000, 1 + n % 5, repeat('a review of some length. ', 1 + n % 30)
    from generate_series(1, 150000) n;
create index on reviews (product_id);
insert into inventory select p, w, (p * w) % 100 from generate_series(1, 100000) p, generate_series(1, 2) w;
insert into price_history select p, timestamptz '2026-01-01' + h * interval '30 days', 100 + p % 9900 + h
    from generate_series(1, 100000) p, generate_series(1, 2) h;
create index on price_history (product_id);
insert into users select md5(n::text)::uuid, 'user' || n || '@example.com', 'user ' || n from generate_series(1, 20000) n;
analyze;";
