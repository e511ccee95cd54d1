#!/usr/bin/env bash
# Puts a PgBouncer that keeps prepared statements (1.21 or newer) into target/pgbouncer: its program is pgbouncer there.
#
# Where the system's own is older, the next Debian release's package and its libraries are downloaded and unpacked,
# not installed. OpenSSL remains the system's: with the newer one each TLS login costs PgBouncer a third more, and each
# idle TLS client half as much memory again. Without apt-get, or without that release, the system's own PgBouncer is
# measured; this script then succeeds.
set -euo pipefail

release=trixie
packages=(pgbouncer libc6 libcares2 libevent-2.1-7t64 libpam0g libsystemd0 libaudit1 libcap-ng0 libcap2)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:-$root/target/pgbouncer}

new_enough() { # PROGRAM
    local version
    version=$("$1" --version 2>/dev/null | sed -n 's/^PgBouncer \([0-9]*\.[0-9]*\).*/\1/p')
    [[ -n $version ]] && printf '1.21\n%s\n' "$version" | sort -CV
}

system=$(PATH="$PATH:/usr/sbin" type -P pgbouncer || true)
if new_enough "$folder/pgbouncer" || new_enough "${system:-/none}"; then exit 0; fi
skip() { echo "pgbouncer: $1, so the system's own is measured, which keeps no prepared statements" && exit 0; }
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | head -n 1) || true
[[ -n $archive ]] || skip "apt-get knows no archive"

echo "pgbouncer: unpacking $release's package"
rm -rf "$folder"
mkdir -p "$folder/lists/partial" "$folder/packages" "$folder/root"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] $archive $release main" >"$folder/sources.list"
apt=(apt-get -qq -o "Dir::Etc::sourcelist=$folder/sources.list" -o Dir::Etc::sourceparts=- -o Acquire::Languages=none
    -o "Dir::State::lists=$folder/lists" -o "Dir::Cache=$folder"
    -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
[[ $EUID != 0 ]] || apt+=(-o APT::Sandbox::User=root)
"${apt[@]}" update >/dev/null 2>&1 || skip "$release is not in the archive"
(cd "$folder/packages" && "${apt[@]}" download "${packages[@]}" >/dev/null) || skip "its packages could not be had"
for package in "$folder"/packages/*.deb; do dpkg-deb -x "$package" "$folder/root"; done

# With its own C library, so by that library's loader.
cat >"$folder/pgbouncer" <<'END'
#!/bin/sh
root=$(dirname "$0")/root
libraries=$(echo "$root"/usr/lib/*-linux-gnu)
exec "$libraries"/ld-linux-*.so.* --library-path "$libraries:${libraries#"$root"}" --argv0 pgbouncer \
    "$root/usr/sbin/pgbouncer" "$@"
END
chmod +x "$folder/pgbouncer"
chmod -R a+rX "$folder"
rm -rf "$folder/lists" "$folder/packages" "$folder"/*.bin "$folder/sources.list"
new_enough "$folder/pgbouncer" || { rm -rf "$folder" && skip "it does not run here"; }
