#!/bin/bash
# deb.sh DIRECTORY — installs the package found there with apt into a bare Debian 12 root, balances over a veth pair with
# it, runs the unprivileged and the data plane's tests on Debian's own module versions, upgrades and purges it, and looks
# for what is left. Needs root and mmdebstrap; leaves nothing behind.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "bare: needs root, to chroot and to mount" >&2; exit 1; }
# shellcheck source=tests/bare/root.sh
. tests/bare/root.sh

timed "bootstrap" bare_root ca-certificates minbase
cp "$1"/xlb_*_all.deb "$ROOT/root/xlb.deb"
timed "apt install" in_root 'apt-get -q update > /tmp/log 2>&1; apt-get -q -y --no-install-recommends install /root/xlb.deb > /tmp/log 2>&1 || { cat /tmp/log; exit 1; }'
timed "installed package" in_root 'bash /mnt/source/tests/bare/installed.sh'
timed "tests on Debian's versions" in_root '
    apt-get -q -y --no-install-recommends install git make prometheus python3-pytest python3-hypothesis python3-scapy ethtool tcpdump xdp-tools libclang1-14 > /tmp/log 2>&1 || { cat /tmp/log; exit 1; }
    dpkg-query -W -f "\${Package} \${Version}\n" python3-click python3-msgpack python3-numpy python3-pyroute2 python3-zmq python3-pytest
    git clone -q /mnt/source /root/xlb
    mount -t bpf bpf /sys/fs/bpf
    cd /root/xlb && exec timeout 1200 python3 -m pytest -q -p no:cacheprovider tests/unit tests/bpf'
