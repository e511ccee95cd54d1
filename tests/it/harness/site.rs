//! Two instances for what goes from one to another, and a tenant with a little of everything in it.

use std::path::PathBuf;

use super::ground::Ground;
use super::postgres::{self, Options, Postgres};

/// Instance `one` of [`Ground`], and instance `two`.
pub struct Site {
    pub ground: Ground,
    pub two: Postgres,
}

impl Site {
    /// `bin_dir`: of the second instance; none: the same PostgreSQL as the first.
    pub async fn new(bin_dir: Option<PathBuf>, changes: &[(&str, toml::Value)]) -> Site {
        let mut settings: Vec<(&str, toml::Value)> = Vec::new();
        let mut options = postgres::options();
        if let Some(bin_dir) = bin_dir {
            let tools: Vec<toml::Value> = vec![bin_dir.display().to_string().into()];
            settings.push(("lifecycle.postgres_tools", tools.into()));
            options = Options { bin_dir: Some(bin_dir), ..options };
        }
        let two = postgres::start_with(options).await;
        two.sql("postgres", "CREATE ROLE keeper LOGIN SUPERUSER PASSWORD 'k'").await.unwrap();
        settings.extend([
            ("instances.two.host", "127.0.0.1".into()),
            ("instances.two.port", i64::from(two.port()).into()),
            ("instances.two.region", "eu".into()),
            ("instances.two.admin.user", "keeper".into()),
            ("instances.two.admin.password.file", "keeper.password".into()),
        ]);
        settings.extend(changes.iter().cloned());
        Site { ground: Ground::with_admin("SUPERUSER", &settings).await, two }
    }

    /// A path in the proxy's folder.
    pub fn path(&self, name: &str) -> String {
        self.ground.proxy.files.dir().join(name).display().to_string()
    }
}

/// Tenant `acme`, with all that a dump could lose; `rows` is the number of its largest table's.
pub async fn furnish(ground: &Ground, rows: u32) {
    ground.done(&["tenant", "create", "acme", "--tier", "gold", "--set-key", "quota.max_clients=77"]).await;
    ground.sql("acme", &CONTENTS.replace("$rows", &rows.to_string())).await;
}

const CONTENTS: &str = r#"
CREATE EXTENSION hstore;
CREATE EXTENSION citext;
ALTER DATABASE acme SET work_mem = '8MB';
ALTER ROLE acme_app IN DATABASE acme SET search_path = shop, public;
SET ROLE acme_owner;
CREATE SCHEMA shop;
GRANT USAGE ON SCHEMA shop TO acme_app, acme_ro;
COMMENT ON SCHEMA shop IS 'what is sold';
CREATE TYPE shop.mood AS ENUM ('glad', 'so so');
CREATE DOMAIN shop.percent AS int CHECK (VALUE BETWEEN 0 AND 100);
CREATE TABLE shop.customers (
  id bigint GENERATED ALWAYS AS IDENTITY (START 1000) PRIMARY KEY,
  name text NOT NULL, email public.citext, attributes public.hstore, mood shop.mood, share shop.percent,
  net numeric(10, 2), gross numeric(10, 2) GENERATED ALWAYS AS (net * 1.19) STORED,
  made timestamptz DEFAULT now(), weight float8, photo bytea, document jsonb, tags text[], secret_of name DEFAULT current_user);
COMMENT ON TABLE shop.customers IS 'people''s "records"';
COMMENT ON COLUMN shop.customers.gross IS 'with tax';
INSERT INTO shop.customers (name, email, attributes, mood, share, net, weight, photo, document, tags, secret_of) VALUES
  (E'Zoë \\ \n\ttab', 'Zoe@Example.com', 'a=>1,b=>NULL', 'glad', 50, 10, 0.1, '\xdeadbeef', '{"a": [1, null]}', '{x,NULL,"y z"}', 'acme_app'),
  ('Ωmega', NULL, NULL, 'so so', NULL, NULL, 'NaN', NULL, NULL, '{}', 'somebody');
ALTER TABLE shop.customers ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON shop.customers FOR ALL TO acme_app USING (secret_of = 'acme_app');
CREATE TABLE shop.events (id int, at date NOT NULL, what text) PARTITION BY RANGE (at);
CREATE TABLE shop.events_2030 PARTITION OF shop.events FOR VALUES FROM ('2030-01-01') TO ('2031-01-01');
CREATE TABLE shop.events_2031 PARTITION OF shop.events FOR VALUES FROM ('2031-01-01') TO ('2032-01-01');
CREATE TABLE shop.events_else PARTITION OF shop.events DEFAULT;
CREATE INDEX ON shop.events (at, what);
INSERT INTO shop.events SELECT n, date '2030-06-01' + n % 900, md5(n::text) FROM generate_series(1, $rows) n;
CREATE TABLE public."Odd ""name" ("to" int, "acme_app" text, pgtenant_row int);
INSERT INTO public."Odd ""name" VALUES (1, 'TO acme_app', 2), (NULL, NULL, NULL);
CREATE TABLE public.nothing ();
CREATE SEQUENCE shop.numbers INCREMENT -5 MINVALUE -1000 START -1;
SELECT nextval('shop.numbers'), nextval('shop.numbers');
CREATE SEQUENCE shop.untouched START 7;
CREATE VIEW shop.first AS SELECT id, gross FROM shop.customers;
CREATE VIEW shop.second AS SELECT id, gross * 2 AS twice FROM shop.first;
CREATE VIEW shop.third WITH (security_barrier) AS SELECT count(*) AS n, sum(twice) AS sum FROM shop.second;
CREATE MATERIALIZED VIEW shop.per_year AS SELECT extract(year FROM at) AS y, count(*) FROM shop.events GROUP BY 1;
CREATE FUNCTION shop.shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name := upper(NEW.name); RETURN NEW; END $$;
CREATE TRIGGER shout BEFORE UPDATE ON shop.customers FOR EACH ROW EXECUTE FUNCTION shop.shout();
GRANT SELECT, INSERT ON shop.customers TO acme_app;
GRANT SELECT ON shop.first TO pg_database_owner;
GRANT SELECT (at, what) ON shop.events TO acme_ro;
GRANT SELECT ON shop.third TO acme_ro WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO acme_ro;
SELECT lo_from_bytea(4711, 'a large object'), lo_from_bytea(4712, ''), lo_from_bytea(4713, convert_to(repeat('x', 100000), 'UTF8'));
COMMENT ON LARGE OBJECT 4711 IS 'large';
RESET ROLE;
SET ROLE acme_app;
CREATE TABLE public.made_by_the_application (n serial PRIMARY KEY, t text);
INSERT INTO public.made_by_the_application (t) VALUES ('one'), ('two');
RESET ROLE;
-- Owned by who may make nothing there, and granted by who does not own it.
CREATE TABLE shop.of_the_application (n int);
ALTER TABLE shop.of_the_application OWNER TO acme_app;
SET ROLE acme_ro; GRANT SELECT ON shop.third TO acme_app; RESET ROLE;
CREATE TABLE shop.of_a_superuser (n int);
INSERT INTO shop.of_a_superuser VALUES (1);
CREATE SCHEMA extra AUTHORIZATION acme_owner;
CREATE EXTENSION pg_trgm WITH SCHEMA extra;
-- What Debian's 15.20 keeps there, and no other major knows.
UPDATE pg_attribute SET attoptions = '{n_distinct=5,pg_attver=3}' WHERE attrelid = 'shop.events_2030'::regclass AND attname = 'id';
UPDATE pg_attribute SET attoptions = '{pg_attver=2}' WHERE attrelid = 'shop.customers'::regclass AND attname = 'name';
"#;
