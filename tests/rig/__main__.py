"""`python -m tests.rig`: builds a rig, starts its node with a VIP and a farm, and opens a shell to look around in it."""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.rig import topology
from tests.rig.topology import HTTP_PORT, TCP_PORT, UDP_PORT, VIP4, Layout, Rig, why_not

SKIPPED = 77


def main() -> int:
    layout = _layout(sys.argv[1:])
    if reason := why_not():
        print(f"skipped: {reason}", file=sys.stderr)
        return SKIPPED
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(128 + signal.SIGHUP))
    with Rig(layout) as rig:
        for node in rig.nodes:
            node.start()
        rig.node.xlbctl("vip", "add", f"{VIP4}/24", "--dev", "eth0")
        rig.node.xlbctl("farm", "add", "web", "--vip", VIP4, "--port", "80", "--mode", "dnat" if layout.routed else "snat")
        for backend in rig.backends:
            rig.node.xlbctl("backend", "add", "web", f"{backend.address4}:{HTTP_PORT}")
        profile = rig.directory / "profile"
        profile.write_text(_profile(rig))
        print(_welcome(rig))
        return subprocess.call(["bash", "--rcfile", str(profile), "-i"])


def _layout(arguments: list[str]) -> Layout:
    parser = argparse.ArgumentParser(prog="python -m tests.rig", description=__doc__)
    parser.add_argument("--backends", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--interfaces", type=int, default=1, choices=(1, 2))
    parser.add_argument("--routed", action="store_true", help="backends route through the node (mode dnat)")
    parser.add_argument("--generic", action="store_true", help="generic instead of native XDP")
    chosen = parser.parse_args(arguments)
    layout = Layout(chosen.backends, chosen.nodes, chosen.interfaces, chosen.routed)
    return replace(layout, xdp_mode="generic") if chosen.generic else layout


def _profile(rig: Rig) -> str:
    """A bash start file: one function per namespace that runs its arguments inside, and xlbctl on the first node."""
    lines = ["PS1='rig \\$ '"]
    for name, namespace in rig.namespaces.items():
        lines.append(f'{name}() {{ nsenter --net={shlex.quote(namespace.path)} "$@"; }}')
    command = " ".join(shlex.quote(word) for word in rig.node.xlbctl_command())
    lines.append(f"export PYTHONPATH={shlex.quote(str(Path.cwd()))}")
    lines.append(f'xlbctl() {{ lb1 {command} "$@"; }}')
    return "\n".join(lines) + "\n"


def _welcome(rig: Rig) -> str:
    assert topology.__doc__ is not None
    picture = topology.__doc__.split("\n\n")[1]
    return (
        f"{picture}\n\nEach host is a command: client curl http://{VIP4}/   lb1 ip -d link   switch tcpdump -i client-eth0"
        f"\nxlbctl talks to lb1; its log is {rig.node.log}\nBackends serve HTTP on {HTTP_PORT}, TCP echo on {TCP_PORT},"
        f" UDP echo on {UDP_PORT}. exit takes everything down."
    )


if __name__ == "__main__":
    sys.exit(main())
