#!/usr/bin/env bash
# Installs what `make demo`, `make test`, `make suites`, `make bench-load` and `make instructions` need and is missing:
# setup.sh demo|test|suites|bench|instructions.
#
# Debian packages by name, as root or with passwordless sudo; elsewhere it lists what to install. Quick, and without a
# word, when everything is there.
set -euo pipefail

purpose=${1:-}
missing=() packages=()

need() { # DEBIAN-PACKAGE WHAT TEST...
    local package=$1 what=$2
    shift 2
    "$@" >/dev/null 2>&1 && return
    packages+=("$package")
    missing+=("$what (Debian: $package)")
}

program() { command -v "$1"; }
postgres() { compgen -G '/usr/lib/postgresql/*/bin/postgres' || command -v postgres; }
pgbench() { compgen -G '/usr/lib/postgresql/*/bin/pgbench' || command -v pgbench; }

need_for_demo() {
    need build-essential "a C compiler" program cc
    need postgresql "a PostgreSQL server (initdb, postgres)" postgres
    need postgresql pgbench pgbench
    need postgresql-client psql program psql
}

need_for_test() {
    need_for_demo
    need python3 "Python 3" program python3
    need python3-venv "Python's venv" python3 -c 'import ensurepip, venv'
    need python3-pip pip python3 -c 'import pip'
    need nodejs Node.js program node
    need npm npm program npm
    need default-jdk-headless "a JDK" program javac
    need libpostgresql-jdbc-java "PostgreSQL's JDBC driver" test -e /usr/share/java/postgresql.jar
    need golang-go Go program go
    need golang-github-lib-pq-dev lib/pq test -d /usr/share/gocode/src/github.com/lib/pq
    need golang-github-jackc-pgx-v4-dev pgx test -d /usr/share/gocode/src/github.com/jackc/pgx/v4
    need prometheus "Prometheus' promtool" program promtool
    need age "age, which reads encrypted bundles" program age
    need_for_instructions
}

need_for_suites() {
    need_for_demo
    need python3 "Python 3" program python3
    need python3-venv "Python's venv" python3 -c 'import ensurepip, venv'
    need dpkg-dev dpkg-source program dpkg-source
}

need_for_bench() {
    need_for_demo
    need python3 "Python 3" program python3
    need openssl openssl program openssl
    need linux-perf perf program perf
    need pgbouncer PgBouncer env PATH="$PATH:/usr/sbin" which pgbouncer
}

need_for_instructions() {
    need build-essential "a C compiler" program cc
    need python3 "Python 3" program python3
    need valgrind valgrind program valgrind
}

explain() { # WHY
    {
        echo "setup: $1"
        echo "Please install:"
        printf '  %s\n' "${missing[@]}"
    } >&2
    exit 1
}

# Our packages start no service and make no database cluster: everything here runs throwaway ones.
install() {
    local root=() policy=/usr/sbin/policy-rc.d
    [[ $EUID == 0 ]] || root=(sudo -n)
    echo "setup: installing ${packages[*]}"
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee "$policy" >/dev/null
        "${root[@]}" chmod +x "$policy"
        # shellcheck disable=SC2064 # the values of now
        trap "${root[*]} rm -f $policy" EXIT
    fi
    local apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0)
    "${apt[@]}" update
    if ! postgres >/dev/null; then
        # The tests are written for 15, which is Debian 12's; another release's own is better than none.
        if apt-cache show postgresql-15 >/dev/null 2>&1; then packages=("${packages[@]/%postgresql/postgresql-15}"); fi
        "${apt[@]}" install --no-install-recommends postgresql-common >/dev/null
        "${root[@]}" sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' \
            /etc/postgresql-common/createcluster.conf
    fi
    "${apt[@]}" install --no-install-recommends "${packages[@]}" >/dev/null
    if [[ " ${packages[*]} " == *" pgbouncer "* && -d /run/systemd/system ]]; then
        "${root[@]}" systemctl disable --quiet pgbouncer
    fi
}

# Without a browser the test of the operators' page is left out, and says so: no reason to fail here.
try_chromium() {
    if program chromium || program google-chrome; then return; fi >/dev/null
    local root=()
    [[ $EUID == 0 ]] || root=(sudo -n)
    if ! program apt-get >/dev/null || ! "${root[@]}" true 2>/dev/null; then return 0; fi
    echo "setup: installing chromium"
    "${root[@]}" env DEBIAN_FRONTEND=noninteractive sh -c \
        'apt-get -qq update && apt-get -qq -o Dpkg::Use-Pty=0 install --no-install-recommends chromium' >/dev/null 2>&1 ||
        echo "setup: chromium cannot be had: the page will not be tried in a browser"
}

case $purpose in
    demo | test | suites | bench | instructions) ;;
    *) echo "usage: $0 demo|test|suites|bench|instructions" >&2 && exit 2 ;;
esac
if ! program cargo >/dev/null; then
    echo "setup: cargo is not installed. pgtenant needs Rust 1.90 or newer: see rustup.rs, or your system's packages." >&2
    exit 1
fi
if [[ $purpose == test ]]; then try_chromium; fi
"need_for_$purpose"
[[ ${#missing[@]} == 0 ]] && exit 0
program apt-get >/dev/null || explain "this is not a Debian system, so nothing was installed."
[[ $EUID == 0 ]] || sudo -n true 2>/dev/null || explain "not root, and sudo asks for a password."
install
missing=() packages=()
"need_for_$purpose"
[[ ${#missing[@]} == 0 ]] || explain "apt-get succeeded, yet this is still missing."
