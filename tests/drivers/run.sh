#!/usr/bin/env bash
# Runs the driver programs: run.sh psycopg|asyncpg|node|jdbc|libpq|pgx|all, over every route in $PGT_ROUTES; or one of the
# operators' tools at the admin console: run.sh exporter|datadog.
#
# Prints one table; exit status 1 when a step failed (its program's output is shown), 2 for wrong parameters.
# A driver that setup.sh skipped counts as passed, unless PGT_NO_SKIP is 1. README.md lists the parameters.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${PGT_DRIVERS_DIR:-$here/../../target/drivers}
routes=${PGT_ROUTES:-${PGT_ROUTE:-sni options suffix}}
seconds=${PGT_SECONDS:-120}
every_driver="psycopg asyncpg node jdbc libpq pgx"
every_step="login marker prepared copy cancel transaction-error"

case ${1:-} in
    all) drivers=$every_driver ;;
    psycopg | asyncpg | node | jdbc | libpq | pgx) drivers=$1 ;;
    exporter | datadog) drivers='' ;;
    *) echo "usage: $0 ${every_driver// /|}|all|exporter|datadog" >&2 && exit 2 ;;
esac
parameters="PGT_PORT PGT_CA PGT_USER PGT_PASSWORD"
[[ -z $drivers ]] || parameters="PGT_HOST $parameters PGT_DATABASE PGT_TENANT"
for name in $parameters; do
    [[ -n ${!name:-} ]] || { echo "$0: $name is not set, see $here/README.md" >&2; exit 2; }
done

# Nothing of the caller's own PostgreSQL settings may stand in for a parameter.
for name in $(compgen -e PG | grep -v '^PGT_' || true); do unset "$name"; done
export PYTHONDONTWRITEBYTECODE=1 PGT_NODE_MODULES=$folder/node

program() { # DRIVER
    case $1 in
        psycopg | asyncpg) "${limit[@]}" "$folder/venv/bin/python" "$here/python/$1_steps.py" ;;
        node) "${limit[@]}" node "$here/node/steps.js" ;;
        jdbc) "${limit[@]}" java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC \
            -cp "$folder/java:$folder/java/postgresql.jar" Steps ;;
        libpq | pgx | exporter) "${limit[@]}" "$folder/go/$1" ;;
        datadog) "${limit[@]}" "$folder/venv/bin/python" "$here/python/datadog_steps.py" ;;
    esac
}
limit=(timeout --kill-after=5 "$seconds")

reason() { cat "$folder/$1.skipped" 2>/dev/null || echo "not set up: run $here/setup.sh"; }

if [[ -z $drivers ]]; then
    [[ -e $folder/$1.ready ]] && { program "$1"; exit; }
    echo "$1 skipped: $(reason "$1")"
    exit "${PGT_NO_SKIP:-0}"
fi

output=$(mktemp)
trap 'rm -f "$output"' EXIT
status=0 passed=0 failed=0 skipped=0
printf '%-9s %-8s' driver route
for step in $every_step; do printf ' %-*s' "${#step}" "$step"; done
echo '  seconds'
for driver in $drivers; do
    if [[ ! -e $folder/$driver.ready ]]; then
        printf '%-9s skipped: %s\n' "$driver" "$(reason "$driver")"
        skipped=$((skipped + 1))
        [[ ${PGT_NO_SKIP:-0} != 1 ]] || status=1
        continue
    fi
    for route in $routes; do
        started=$EPOCHREALTIME
        code=0
        PGT_ROUTE=$route program "$driver" >"$output" 2>&1 || code=$?
        printf '%-9s %-8s' "$driver" "$route"
        missing=0
        for step in $every_step; do
            mark=-
            if grep -qx "ok $step" "$output"; then mark=ok; else missing=1; fi
            if grep -q "^not ok $step:" "$output"; then mark=FAIL; fi
            printf ' %-*s' "${#step}" "$mark"
        done
        awk -v from="$started" -v to="$EPOCHREALTIME" 'BEGIN { printf "  %.1f\n", to - from }'
        if [[ $code != 0 || $missing != 0 ]]; then
            echo "--- $driver by $route ended with $code (124: after $seconds s):"
            cat "$output"
            echo "---"
            status=1 failed=$((failed + 1))
        else
            passed=$((passed + 1))
        fi
    done
done
echo "drivers: $passed passed, $failed failed, $skipped skipped"
exit "$status"
