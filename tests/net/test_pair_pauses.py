"""Daemons that are stopped and continued, as by a paused VM or a starved host: no process dies, no connection breaks."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from tests.net.paired import PairSite, paired

HELD = 100
ROUNDS = [("active", 1.5), ("backup", 2.2), ("both", 1.3), ("active", 0.1)]
"""(whose daemon, seconds). A pause of 1.2 to 2.5 s fills the receiver's queue while the sender closes its connection."""


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with paired() as pair:
        pair.add_farm("tcp")
        yield pair


def test_a_pair_survives_pauses_of_either_daemon_and_of_both(site: PairSite) -> None:
    processes = [node.process for node in site.rig.nodes]

    def alive() -> bool:
        return all(process is not None and process.poll() is None for process in processes)

    with site.holding(HELD) as held:
        for who, pause_s in ROUNDS:
            nodes = {"active": [site.node], "backup": [site.other], "both": site.rig.nodes}[who]
            for node in nodes:
                node.signal(signal.SIGSTOP)
            time.sleep(pause_s)
            for node in nodes:
                node.signal(signal.SIGCONT)
            site.settle()
            assert alive(), f"after {who} paused {pause_s} s"
            assert site.rig.client.run(held.confirm()) == 0, f"after {who} paused {pause_s} s"
