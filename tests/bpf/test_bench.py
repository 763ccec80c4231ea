"""The bench of packets measures this program."""

from __future__ import annotations

from bench.packet import situations

MATCHES = ("drop_vip_guard", "drop_no_backend", situations.HIT)


def test_packets_of_several_kinds_are_measured() -> None:
    chosen = [each for each in situations.all_situations(quick=True) if each.name.startswith(MATCHES)]
    with situations.benches(chosen) as benches:
        costs = {each.name: cost for each, cost in situations.measured(chosen, 1, benches)}
    assert len(costs) == 3 and all(isinstance(cost, int) and cost > 0 for cost in costs.values()), costs
