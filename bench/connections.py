"""Held connections with checked payload across a restart and a kill -9 of xlbd: how many ended, how many bytes were wrong.

    .venv/bin/python -m bench.connections [--connections 1000] [--runs 1] [--generic]

Prints one line per fault and run; exits 1 if anything broke. Needs root.
"""

from __future__ import annotations

import argparse
import sys

from tests.net.serving import PORTS, VIPS, Serving, serving
from tests.rig import HeldConnections, Layout, why_not


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.connections", description=__doc__)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--generic", action="store_true", help="generic instead of native XDP")
    chosen = parser.parse_args()
    if reason := why_not():
        print(f"cannot run here: {reason}", file=sys.stderr)
        return 1
    harmed = 0
    print(f"{'fault':<10}{'held':>8}{'broken':>8}{'stalled':>9}{'wrong bytes':>13}{'round trips':>13}{'ready again':>13}")
    with serving(Layout(xdp_mode="generic" if chosen.generic else "native")) as site:
        site.add_farm("tcp")
        for _ in range(chosen.runs):
            for fault in ("restart", "kill -9"):
                harmed += _measure(site, fault, chosen.connections)
    return 1 if harmed else 0


def _measure(site: Serving, fault: str, count: int) -> int:
    """Hold connections over one fault, print the line; returns how many connections or bytes were harmed."""
    held = HeldConnections(VIPS[4], PORTS["tcp"], count)
    site.rig.client.run(held.open())
    if fault == "restart":
        site.node.stop()
    else:
        site.node.kill()
    away = site.rig.client.run(held.confirm())
    site.node.start()
    stalled = max(away, site.rig.client.run(held.confirm())) - len(held.broken)
    print(
        f"{fault:<10}{count:>8}{len(held.broken):>8}{stalled:>9}{held.wrong_bytes:>13}{held.round_trips:>13}"
        f"{site.node.started_in_s:>11.2f} s"
    )
    site.rig.client.run(held.close())
    return len(held.broken) + stalled + held.wrong_bytes


if __name__ == "__main__":
    sys.exit(main())
