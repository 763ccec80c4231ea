"""The sysctls that forwarding requires: reads and sets them.

* forwarding: bpf_fib_lookup works only for interfaces that forward, and the kernel forwards unresolved packets.
* accept_local: a packet with an unresolved next hop passes to the kernel with the VIP, a local address, as source.
* arp_announce 2: for such a packet the kernel would send ARP requests with the VIP as sender, and continue for seconds after
  the VIP has moved to the peer; neighbours would update their caches to the wrong node.
* accept_ra 2: with forwarding, 1 would make the node drop the default route that it learned by router advertisement.

Must not know farms. The settings are in /proc/sys of the network namespace this process is in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/proc/sys/net")


@dataclass(frozen=True, slots=True)
class Setting:
    """A sysctl under net/ and the value forwarding needs."""

    path: str
    wanted: str
    instead_of: str = ""  # change only this value; empty: change any other

    @property
    def name(self) -> str:
        return "net." + self.path.replace("/", ".")


def settings(interfaces: Sequence[str], root: Path = ROOT) -> Iterator[Setting]:
    """The settings for the data interfaces; accept_ra of every interface precedes the forwarding switch."""
    yield Setting("ipv4/ip_forward", "1")
    for interface in interfaces:
        yield Setting(f"ipv4/conf/{interface}/forwarding", "1")
        yield Setting(f"ipv4/conf/{interface}/accept_local", "1")
        yield Setting(f"ipv4/conf/{interface}/arp_announce", "2")
    if not (root / "ipv6/conf/all/forwarding").exists():
        return
    for directory in sorted((root / "ipv6/conf").iterdir()):
        if directory.name not in ("all", "default"):
            yield Setting(f"ipv6/conf/{directory.name}/accept_ra", "2", instead_of="1")
    yield Setting("ipv6/conf/all/forwarding", "1")
    for interface in interfaces:
        yield Setting(f"ipv6/conf/{interface}/forwarding", "1")


def problems(interfaces: Sequence[str], root: Path = ROOT) -> list[str]:
    """One message, with the remedy, for each wrong setting."""
    found = []
    for setting in settings(interfaces, root):
        value = _read(root / setting.path)
        if value is not None and _is_wrong(setting, value):
            found.append(f"{setting.name} is {value}, must be {setting.wanted}: sysctl -w {setting.name}={setting.wanted}")
    for interface in ("all", *interfaces):
        if _read(root / f"ipv4/conf/{interface}/rp_filter") == "1":
            name = f"net.ipv4.conf.{interface}.rp_filter"
            found.append(f"{name} is 1 (strict) and may drop replies that wait for a neighbour: sysctl -w {name}=2")
    return found


def enable(interfaces: Sequence[str], root: Path = ROOT) -> list[str]:
    """Set every wrong setting; one message per change or failure."""
    messages = []
    for setting in settings(interfaces, root):
        path = root / setting.path
        value = _read(path)
        if value is None or not _is_wrong(setting, value):
            continue
        try:
            path.write_text(setting.wanted)
        except OSError as error:
            messages.append(f"could not set {setting.name}={setting.wanted} (it is {value}): {error.strerror}")
        else:
            messages.append(f"set {setting.name} from {value} to {setting.wanted}")
    return messages


def _is_wrong(setting: Setting, value: str) -> bool:
    return value == setting.instead_of if setting.instead_of else value != setting.wanted


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
