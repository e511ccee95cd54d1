#!/usr/bin/env bash
# Prepares the driver programs in a folder: setup.sh [FOLDER] (default: $PGT_DRIVERS_DIR, or target/drivers).
#
# What is ready is left alone. A driver whose toolchain is missing is noted as skipped, with the reason, for run.sh;
# one whose toolchain is there and whose build fails ends this script with an error.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:-${PGT_DRIVERS_DIR:-$here/../../target/drivers}}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# Inputs (files and a tool's version) have changed since the stamp was written?
stale() { # NAME VERSION FILE...
    local name=$1 version=$2
    shift 2
    sum=$({ echo "$version"; cat "$@"; } | sha256sum)
    [[ ! -e $folder/$name.ready || $(<"$folder/$name.ready") != "$sum" ]]
}

ready() { # NAME...
    local name
    for name in "$@"; do
        rm -f "$folder/$name.skipped"
        echo "$sum" >"$folder/$name.ready"
    done
}

skip() { # REASON NAME...
    local reason=$1 name
    shift
    for name in "$@"; do
        rm -f "$folder/$name.ready"
        echo "$reason" >"$folder/$name.skipped"
        echo "drivers: $name skipped: $reason"
    done
}

python() {
    local names="psycopg asyncpg datadog" wanted=$here/python/requirements.txt name old=
    # shellcheck disable=SC2086  # a list
    command -v python3 >/dev/null || { skip "python3 is not installed" $names; return; }
    for name in $names; do ! stale "$name" "$(python3 --version)" "$wanted" || old=1; done
    [[ -n $old ]] || return 0
    echo "drivers: psycopg, asyncpg, psycopg2"
    rm -rf "$folder/venv"
    python3 -m venv "$folder/venv" >"$folder/venv.log" 2>&1 ||
        { skip "python3 -m venv fails (Debian: python3-venv)" $names; return; }
    "$folder/venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$wanted"
    ready $names
}

node_postgres() {
    command -v node >/dev/null || { skip "node is not installed" node; return; }
    command -v npm >/dev/null || { skip "npm is not installed" node; return; }
    stale node "$(node --version)" "$here/node/package-lock.json" || return 0
    echo "drivers: node-postgres"
    mkdir -p "$folder/node"
    cp "$here/node/package.json" "$here/node/package-lock.json" "$folder/node/"
    (cd "$folder/node" && npm ci --silent --ignore-scripts --no-audit --no-fund)
    ready node
}

jdbc() {
    command -v javac >/dev/null || { skip "javac is not installed" jdbc; return; }
    local jar=${PGT_JDBC_JAR:-/usr/share/java/postgresql.jar}
    [[ -e $jar ]] || { skip "$jar does not exist (Debian: libpostgresql-jdbc-java)" jdbc; return; }
    stale jdbc "$(javac -version 2>&1) $jar" "$here/java/Steps.java" "$jar" || return 0
    echo "drivers: JDBC"
    rm -rf "$folder/java"
    javac -Xlint:all -cp "$jar" -d "$folder/java" "$here/java/Steps.java"
    ln -sfn "$jar" "$folder/java/postgresql.jar"
    ready jdbc
}

# Debian ships the Go libraries as sources for GOPATH mode: no module is ever fetched.
go_program() { # NAME IMPORT PACKAGE
    local name=$1 import=$2 package=$3 gopath=${PGT_GOPATH:-/usr/share/gocode}
    command -v go >/dev/null || { skip "go is not installed" "$name"; return; }
    [[ -d $gopath/src/$import ]] || { skip "$gopath/src/$import does not exist (Debian: $package)" "$name"; return; }
    stale "$name" "$(go version)" "$here/go/settings.go" "$here/go/$name.go" || return 0
    echo "drivers: $import"
    mkdir -p "$folder/go"
    (cd "$here/go" && GO111MODULE=off GOFLAGS='' GOPATH=$gopath GOCACHE=$folder/go/cache \
        go build -o "$folder/go/$name" "$name.go" settings.go)
    ready "$name"
}

python
node_postgres
jdbc
go_program libpq github.com/lib/pq golang-github-lib-pq-dev
go_program exporter github.com/lib/pq golang-github-lib-pq-dev
go_program pgx github.com/jackc/pgx/v4 golang-github-jackc-pgx-v4-dev
