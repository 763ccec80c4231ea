"""How exactly weights 1:2:3 are honoured by new connections, for each scheduler with weights.

    .venv/bin/python -m bench.weights [--connections 30000]

Prints each backend's share and its error; exits 1 if one is off by more than 2 % of the total. Needs root.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.net.serving import PORTS, VIPS, Serving, serving
from tests.rig import Tally, repeat, tcp_connect, why_not

WEIGHTS = (1, 2, 3)
TOLERANCE = 0.02


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.weights", description=__doc__)
    parser.add_argument("--connections", type=int, default=30_000)
    chosen = parser.parse_args()
    if reason := why_not():
        print(f"cannot run here: {reason}", file=sys.stderr)
        return 1
    worst = 0.0
    with serving() as site:
        for scheduler in ("maglev", "roundrobin"):
            worst = max(worst, _measure(site, scheduler, chosen.connections))
    return 1 if worst > TOLERANCE else 0


def _measure(site: Serving, scheduler: str, count: int) -> float:
    """Open `count` connections through a farm of `scheduler`, print the shares; returns the largest error of a share."""
    farm = site.add_farm("tcp", weights=WEIGHTS, scheduler=scheduler)
    began = time.monotonic()
    tally = Tally()
    site.rig.client.run(repeat(lambda: tcp_connect(VIPS[4], PORTS["tcp"]), count, tally), deadline_s=300)
    took_s = time.monotonic() - began
    site.node.call("farm.delete", name=farm)
    print(f"{scheduler}: {tally.done} connections, {len(tally.failures)} failed, {tally.done / took_s:.0f}/s")
    worst = 1.0 if tally.failures else 0.0
    for name, weight in zip(("b1", "b2", "b3"), WEIGHTS, strict=True):
        share, fair = tally.shares().get(name, 0.0), weight / sum(WEIGHTS)
        worst = max(worst, abs(share - fair))
        error = f"error {share - fair:+.3%} ({share / fair - 1:+.2%})"
        print(f"  {name}  weight {weight}  share {share:7.3%}  wanted {fair:7.3%}  {error}")
    return worst


if __name__ == "__main__":
    sys.exit(main())
