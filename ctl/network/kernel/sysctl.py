"""The sysctls that forwarding requires: which they are, what they are now, and how one is set.

* forwarding: bpf_fib_lookup works only for interfaces that forward, and the kernel forwards unresolved packets.
* accept_local: a packet with an unresolved next hop passes to the kernel with the VIP, a local address, as source.
* arp_announce 2: for such a packet the kernel would send ARP requests with the VIP as sender, and continue for seconds after
  the VIP has moved to the peer; neighbours would update their caches to the wrong node.
* promote_secondaries: otherwise the kernel removes every secondary address of a subnet with the primary one, which a VIP
  becomes when the node's own address is removed and added again.
* send_redirects 0: on a link with clients and backends the kernel would answer a packet that it forwards with a redirect; a
  client that obeys sends its next packets past this node for five minutes. The kernel combines "all" and the interface by OR.
* accept_ra 2: with forwarding, 1 would make the node drop the default route that it learned by router advertisement.

Must not know farms. The settings are in /proc/sys of the network namespace this process is in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ctl.errors import Advice
from ctl.network.network import Setting

ROOT = Path("/proc/sys/net")


def settings(interfaces: Sequence[str], vip_interfaces: Sequence[str] = (), root: Path = ROOT) -> Iterator[Setting]:
    """The settings for data interfaces and those with VIPs; accept_ra of every interface precedes the forwarding switch."""
    yield Setting("ipv4/ip_forward", "1")
    yield Setting("ipv4/conf/all/send_redirects", "0")
    for interface in interfaces:
        conf = f"ipv4/conf/{interface}"
        yield Setting(f"{conf}/forwarding", "1")
        yield Setting(f"{conf}/accept_local", "1")
        yield Setting(f"{conf}/arp_announce", "2")
        yield Setting(f"{conf}/send_redirects", "0")
    for interface in dict.fromkeys((*interfaces, *vip_interfaces)):
        yield Setting(f"ipv4/conf/{interface}/promote_secondaries", "1")
    if not (root / "ipv6/conf/all/forwarding").exists():
        return
    for directory in sorted((root / "ipv6/conf").iterdir()):
        if directory.name not in ("all", "default"):
            yield Setting(f"ipv6/conf/{directory.name}/accept_ra", "2", instead_of="1")
    yield Setting("ipv6/conf/all/forwarding", "1")
    for interface in interfaces:
        yield Setting(f"ipv6/conf/{interface}/forwarding", "1")


def read(interfaces: Sequence[str], vip_interfaces: Sequence[str] = (), root: Path = ROOT) -> Mapping[Setting, str]:
    """The value of each setting that exists, in the order in which they must be set."""
    values = ((setting, _read(root / setting.path)) for setting in settings(interfaces, vip_interfaces, root))
    return {setting: value for setting, value in values if value is not None}


def problems(interfaces: Sequence[str], root: Path = ROOT) -> list[Advice]:
    """One message, with the remedy, for each wrong setting."""
    found = [
        Advice(f"{setting.name} is {value}, must be {setting.wanted}", f"sysctl -w {setting.name}={setting.wanted}")
        for setting, value in read(interfaces, root=root).items()
        if setting.is_wrong(value)
    ]
    for interface in ("all", *interfaces):
        if _read(root / f"ipv4/conf/{interface}/rp_filter") == "1":
            name = f"net.ipv4.conf.{interface}.rp_filter"
            found.append(Advice(f"{name} is 1 (strict) and may drop replies that wait for a neighbour", f"sysctl -w {name}=2"))
    return found


def correct(setting: Setting, root: Path = ROOT) -> None:
    """Set it. Raises OSError."""
    (root / setting.path).write_text(setting.wanted)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
