#!/bin/bash
# Proves "only git and make": bootstraps a bare Debian 12 root, clones this repository's HEAD into it and runs make
# TARGETS there (default: setup, a second setup, demo, test). Needs root and mmdebstrap; leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "bare: needs root, to chroot and to mount" >&2; exit 1; }
# shellcheck source=tests/bare/root.sh
. tests/bare/root.sh

[ $# -gt 0 ] || set -- setup setup demo test
timed "bootstrap" bare_root git,make,ca-certificates minbase
printf 'bare: Debian %s with %d packages; python3 is %s\n' "$(cat "$ROOT/etc/debian_version")" \
    "$(dpkg-query --admindir="$ROOT/var/lib/dpkg" -f '.\n' -W | wc -l)" "$(test -e "$ROOT/usr/bin/python3" && echo there || echo absent)"
timed "git clone" in_root 'git clone -q /mnt/source /root/xlb'
script='cd /root/xlb'
for target; do script+="; s=\$SECONDS; make $target; echo \"bare: make $target took \$((SECONDS - s)) s\""; done
script+='; git status --short --ignored=no'
timed "everything in the root" in_root "$script"
