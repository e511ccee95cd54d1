#!/bin/bash
# Run by the postgres image at the first start: the tenant $TENANT with its roles, its database and a marker row.
set -euo pipefail

# psql quotes the values itself (:'…', :"…"). The password goes in by environment: a command line can be read by others.
app_password=$(cat "/run/secrets/${TENANT}_app")
export app_password
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres --set tenant="$TENANT" <<'SQL'
\getenv app_password app_password
CREATE ROLE owner NOLOGIN;
CREATE ROLE app LOGIN PASSWORD :'app_password';
CREATE DATABASE :"tenant" OWNER owner;
-- Other roles of the instance have no business here.
REVOKE CONNECT ON DATABASE :"tenant" FROM PUBLIC;
GRANT CONNECT, TEMPORARY ON DATABASE :"tenant" TO app;
\connect :"tenant"
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO owner;
GRANT USAGE ON SCHEMA public TO app;
SET ROLE owner;
ALTER DEFAULT PRIVILEGES GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO app;
ALTER DEFAULT PRIVILEGES GRANT USAGE, SELECT ON SEQUENCES TO app;
-- Whoever reads another tenant's name here has found a hole.
CREATE TABLE marker (tenant text PRIMARY KEY);
INSERT INTO marker VALUES (:'tenant');
SQL
