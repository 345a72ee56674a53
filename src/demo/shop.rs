//! The shop: its tables and rows.

/// Categories.
pub const CATEGORIES: u32 = 200;
/// Warehouses.
pub const WAREHOUSES: u32 = 2;

/// How much there is of what.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Products.
    pub products: u32,
}

impl Size {
    /// Products that have reviews: the first ones.
    #[must_use]
    pub fn reviewed(self) -> u32 {
        self.products / 2
    }

    /// In one line.
    #[must_use]
    pub fn told(self) -> String {
        let Self { products } = self;
        let stocks = products * WAREHOUSES;
        format!("{products} products, {} reviews, {stocks} stocks, {} users", self.reviews(), self.users())
    }

    fn reviews(self) -> u32 {
        3 * self.reviewed()
    }

    fn users(self) -> u32 {
        self.products / 5
    }

    /// What creates and fills the tables.
    #[must_use]
    pub fn sql(self) -> String {
        let Self { products } = self;
        let (reviewed, reviews, users) = (self.reviewed(), self.reviews(), self.users());
        format!(
            "{TABLES}
insert into categories select n, 'category ' || n from generate_series(1, {CATEGORIES}) n;
insert into products select n, 'product ' || n, 100 + n % 9900, 1 + n % {CATEGORIES}, ({products} / n)::int,
    jsonb_build_object('color', (array['red', 'green', 'blue'])[1 + n % 3], 'weight_grams', n % 5000)
    from generate_series(1, {products}) n;
insert into reviews select n, 1 + n % {reviewed}, 1 + n % 5, repeat('a review of some length. ', 1 + n % 30)
    from generate_series(1, {reviews}) n;
insert into inventory select p, w, (p * w) % 100 from generate_series(1, {products}) p, generate_series(1, {WAREHOUSES}) w;
insert into price_history select p, timestamptz '2026-01-01' + h * interval '30 days', 100 + p % 9900 + h
    from generate_series(1, {products}) p, generate_series(1, 2) h;
insert into users select md5(n::text)::uuid, 'user' || n || '@example.com', 'user ' || n from generate_series(1, {users}) n;
create index on reviews (product_id);
create index on price_history (product_id);
analyze;"
        )
    }
}

const TABLES: &str = "
create table categories (id int primary key, name text not null);
create table products (
    id int primary key, name text not null, price_cents int not null, category_id int not null references categories,
    sold int not null default 0, attributes jsonb not null default '{}', updated_at timestamptz not null default now()
);
create index on products (category_id);
create table reviews (id bigint primary key, product_id int not null, stars smallint not null, body text not null);
create table inventory (product_id int, warehouse_id int, quantity int not null, primary key (product_id, warehouse_id));
create table price_history (product_id int not null, changed_at timestamptz not null, price_cents int not null);
create table users (id uuid primary key, email text not null, name text not null, created_at timestamptz not null default now());";
