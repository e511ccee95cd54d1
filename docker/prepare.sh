#!/bin/sh
# Makes what compose.yaml needs and what belongs in no repository: passwords, a development CA, a certificate.
# Run it once before `docker compose up`; what exists is kept. Remove docker/local to begin anew.
set -eu
umask 077
cd "$(dirname "$0")"

# Only this folder keeps other users of the host out. The files in it are readable, because the containers' users,
# who have other numbers than you, see them through bind mounts.
mkdir -p local
chmod 700 local
mkdir -p local/secrets local/certs local/ca
chmod 755 local/secrets local/certs

for name in postgres acme_app globex_app http_token; do
    file=local/secrets/$name
    [ -s "$file" ] || openssl rand -hex 24 | tr -d '\n' > "$file"
    chmod 644 "$file"
done

if ! [ -s local/certs/default.crt ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=pgtenant development CA" \
        -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout local/ca/ca.key -out local/ca/ca.crt
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=db.localhost" \
        -keyout local/certs/default.key -out local/ca/default.csr
    cat > local/ca/default.ext <<'EXT'
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost,DNS:db.localhost,DNS:*.db.localhost,IP:127.0.0.1
EXT
    openssl x509 -req -in local/ca/default.csr -CA local/ca/ca.crt -CAkey local/ca/ca.key -CAcreateserial -days 397 \
        -extfile local/ca/default.ext -out local/certs/default.crt
    chmod 644 local/certs/default.crt local/certs/default.key
fi

cat <<'TEXT'
Ready. Start with:   docker compose -f docker/compose.yaml up --build
Then, for example:   PGPASSWORD=$(cat docker/local/secrets/acme_app) psql "host=acme.db.localhost hostaddr=127.0.0.1 \
  port=6432 user=app dbname=acme sslmode=verify-full sslrootcert=docker/local/ca/ca.crt" -c "TABLE marker"
The page:            http://127.0.0.1:9930 (it asks for the token: docker/local/secrets/http_token)
Dashboards:          http://127.0.0.1:3000
TEXT
