#!/bin/bash
# Judges the installed package without systemd, in network and mount namespaces of its own: starts it on a veth, adds a
# farm, upgrades and removes it, and looks at what the kernel holds. Run in a bare root by deb.sh.
set -euo pipefail
[ "${1:-}" = inside ] || exec unshare --net --mount bash "$0" inside
check() { if "${@:2}"; then printf 'ok      %s\n' "$1"; else printf 'FAILED  %s\n' "$1"; exit 1; fi; }
refute() { if "${@:2}"; then printf 'FAILED  %s\n' "$1"; exit 1; else printf 'ok      %s\n' "$1"; fi; }
until_true() { for _ in $(seq 300); do if "$@" > /dev/null 2>&1; then return; fi; sleep 0.1; done; return 1; }
# grep reads to the end: a writer that loses its reader would fail the pipe.
xdp_on() { ip -details link show dev "$1" | grep xdp > /dev/null; }
vip_on() { ip address show dev "$1" | grep 10.77.0.100 > /dev/null; }
shows_user() { xlbctl history | grep -F "$1" > /dev/null; }
# answers PATTERN METHOD PATH … — xlb-web answers with that.
answers() { asked "${@:2}" 2> /dev/null | grep "$1" > /dev/null; }
show_log() { [ $? = 0 ] || cat /tmp/xlbd.log /tmp/web.log >&2; }
# As its unit does: as the user xlb-web, which finds its state directory made.
start_web() {
    install -d -o xlb-web -g xlb -m 700 /var/lib/xlb-web
    setpriv --reuid xlb-web --regid xlb --clear-groups --no-new-privs xlb-web 2>> /tmp/web.log &
    web=$!
}
# asked METHOD PATH [BODY [TOKEN]] — the body of xlb-web's answer; fails unless it is 200.
asked() {
    python3 - "$@" << 'CLIENT'
import http.client, ssl, sys
method, path, body, token = (*sys.argv[1:], "", "")[:4]
connection = http.client.HTTPSConnection("127.0.0.1", 8443, timeout=10, context=ssl._create_unverified_context())
given = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
connection.request(method, path, body or None, given)
answer = connection.getresponse()
print(answer.read().decode())
sys.exit(answer.status != 200)
CLIENT
}

mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
cd /
for name in bpf ctl sync; do refute "$name is not importable by other programs" python3 -c "import $name" 2> /dev/null; done
check "xlbctl --help" grep -q "farm" <(xlbctl --help)
check "the packaged node file is valid" xlbd --check-config
check "manual pages" test -e /usr/share/man/man8/xlbctl.8.gz -a -e /usr/share/man/man8/xlbd.8.gz -a -e /usr/share/man/man8/xlb-web.8.gz
check "completion" bash -n /usr/share/bash-completion/completions/xlbctl
check "group xlb" getent group xlb
check "user xlb-web of group xlb" test "$(id -gn xlb-web)" = xlb
: > /tmp/web.log

ip link set lo up
ip link add eth0 type veth peer name peer0
ip link set eth0 up
ip link set peer0 up
ip address add 10.77.0.1/24 dev eth0
trap show_log EXIT
xlbd 2> /tmp/xlbd.log &
daemon=$!
check "xlbd serves" until_true xlbctl vip list
xlbctl vip add 10.77.0.100/24 --dev eth0
xlbctl farm add web --vip 10.77.0.100 --port 80
xlbctl backend add web 10.77.0.11:80
check "XDP is on eth0" xdp_on eth0
check "the VIP is on eth0" vip_on eth0

start_web
check "xlb-web answers with TLS, as its own user" until_true asked GET /healthz
check "it runs without privileges" grep -q "CapEff:.0000000000000000" "/proc/$web/status"
check "the page" answers "<html" GET /
check "the charts" answers Chart GET /lib/chart.js/chart.esm.js
refute "without a login the API answers nothing" answers result GET /api/v1/vips
echo "correct horse battery" | xlbctl user add olga --role operator
token=$(xlbctl token add script --role operator < /dev/null)
login() { answers operator POST /api/v1/session "{\"name\": \"olga\", \"password\": \"$1\"}"; }
check "a login works" until_true login "correct horse battery"
refute "another password does not" login "correct horse"
check "a token shows the VIP" answers 10.77.0.100 GET /api/v1/vips "" "$token"
check "a token adds another" answers result POST /api/v1/vips '{"address": "10.77.0.101/24", "device": "eth0"}' "$token"
check "xlbd knows who did it" shows_user "(web)"
check "its fingerprint" grep -q "$(setpriv --reuid xlb-web --regid xlb --clear-groups xlb-web --fingerprint)" /tmp/web.log
kill "$web"
check "it stops cleanly" wait "$web"

# The next version: the same files under a higher number.
dpkg-deb --raw-extract /root/xlb.deb /tmp/next
sed -i 's/^Version: .*/&+next/' /tmp/next/DEBIAN/control
dpkg-deb --build /tmp/next /tmp/next.deb > /dev/null
kill "$daemon"
wait "$daemon"
apt-get -q -y install /tmp/next.deb > /tmp/log 2>&1 || { cat /tmp/log; exit 1; }
check "an upgrade leaves XDP on eth0" xdp_on eth0
xlbd 2> /tmp/xlbd.log &
daemon=$!
check "the new version adopts the pins and the farms" until_true xlbctl farm show web
check "adopted" grep -q adopted /tmp/xlbd.log
kill "$daemon"
wait "$daemon"

apt-get -q -y purge xlb > /tmp/log 2>&1 || { cat /tmp/log; exit 1; }
refute "purge leaves no XDP program" xdp_on eth0
refute "purge leaves no VIP" vip_on eth0
check "purge leaves the node's own address" ip address show dev eth0 to 10.77.0.1
check "purge leaves no pins" test -z "$(find /sys/fs/bpf -name 'xlb*')"
for path in /var/lib/xlb /var/lib/xlb-web /run/xlb /etc/xlb /usr/lib/xlb; do refute "purge leaves no $path" test -e $path; done
refute "purge leaves no group xlb" getent group xlb
refute "purge leaves no user xlb-web" getent passwd xlb-web
apt-get -q -y --no-install-recommends install /root/xlb.deb > /tmp/log 2>&1 || { cat /tmp/log; exit 1; }
check "installs again after a purge" xlbd --check-config
