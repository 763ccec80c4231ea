# Sourced: a bare Debian 12 root in a temporary directory, and commands in it. Its mirrors, certificates and pip
# settings are this machine's own: they are the test's environment, not part of what is tested.

# bare_root PACKAGES VARIANT — makes $ROOT with the packages (comma-separated); it is gone when the shell exits.
bare_root() {
    ROOT=$(mktemp -d /var/tmp/xlb-bare.XXXXXX)
    trap 'rm -rf --one-file-system "$ROOT"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    debian_sources | mmdebstrap --quiet --variant="$2" --mode=root --include="$1" --aptopt='Acquire::Languages "none"' bookworm "$ROOT" -
    cp --dereference /etc/resolv.conf /etc/hosts "$ROOT/etc/"
    install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$ROOT/etc/ssl/certs/ca-certificates.crt"
    if [ -f /etc/pip.conf ]; then grep -v -e 'file:' -e '^find-links' /etc/pip.conf > "$ROOT/etc/pip.conf" || true; fi
}

# One "deb" line for each Debian archive that this machine's apt knows.
debian_sources() {
    # shellcheck disable=SC2016 # apt expands these
    apt-get indextargets --format '$(ORIGIN) deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        sed -n 's/^Debian deb/deb/p' | sort -u
}

# in_root COMMAND — runs it by bash in the root, in mount and process namespaces of its own that end with it.
in_root() {
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TERM="${TERM:-dumb}" CI=true \
        XLB_NO_SKIP="${XLB_NO_SKIP:-1}" http_proxy="${http_proxy:-}" https_proxy="${https_proxy:-}" no_proxy="${no_proxy:-}" \
        PIP_INDEX_URL="${PIP_INDEX_URL:-https://pypi.org/simple}" PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
        unshare --mount --pid --fork --kill-child --propagation private -- bash -c '
            set -euo pipefail
            mount --bind "$1" "$1"
            mkdir -p "$1/mnt/source"
            mount --bind "$2" "$1/mnt/source"
            mount -o remount,bind,ro "$1/mnt/source"
            mount -t proc proc "$1/proc"
            mount -t sysfs sysfs "$1/sys"
            mount --rbind /dev "$1/dev"
            mount -t tmpfs -o mode=755 tmpfs "$1/run"
            exec chroot "$1" bash -euo pipefail -c "$3"
        ' bash "$ROOT" "$PWD" "$1" < /dev/null
}

# timed NAME COMMAND… — runs the command and prints how long it took.
timed() {
    local name=$1 start=$SECONDS; shift
    "$@" || { printf 'bare: %s FAILED after %d s\n' "$name" $((SECONDS - start)) >&2; return 1; }
    printf 'bare: %s took %d s\n' "$name" $((SECONDS - start))
}
