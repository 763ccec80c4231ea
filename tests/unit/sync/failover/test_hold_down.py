"""How long a node that left service because of faults stays active, and that nothing else waits for it."""

from __future__ import annotations

from sync.failover import types
from sync.failover.hold_down import LONGEST_NS, WINDOW_NS, HoldDown
from sync.failover.types import Role
from tests.fakes.failover_pair import Pair

MS = 1_000_000


def test_it_doubles_from_half_a_second_to_eight_seconds_and_is_forgotten() -> None:
    hold, found = HoldDown(), []
    for now_ns in range(0, 8_000_000_000, 1_000_000_000):
        hold.opened(now_ns)
        found.append(hold.left_ns(now_ns) // MS)
        hold.left(now_ns)
    assert found == [0, 500, 1000, 2000, 4000, 8000, 8000, 8000]
    hold.opened(WINDOW_NS)
    assert hold.left_ns(WINDOW_NS) == LONGEST_NS
    hold.opened(WINDOW_NS + 7_000_000_000)
    assert hold.left_ns(WINDOW_NS + 7_000_000_000) == 0, "every departure is longer ago than the window"


def test_it_counts_from_when_the_node_became_active() -> None:
    hold = HoldDown()
    hold.left(0)
    hold.opened(100 * MS)
    assert [hold.left_ns(at * MS) // MS for at in (100, 350, 600, 9000)] == [500, 250, 0, 0]


FAULT, MENDED = types.FaultChanged("carrier eth0", "no carrier on eth0"), types.FaultChanged("carrier eth0")


def test_a_first_fault_moves_the_vips_at_once_and_flapping_carriers_ever_less_often() -> None:
    pair = Pair()
    active, backup = (pair.one, pair.two) if pair.one.serving else (pair.two, pair.one)
    pair.hear(active, FAULT)
    pair.pass_ms(30)
    assert backup.serving and active.role is Role.FAULT
    pair.hear(active, MENDED)
    served = [sum(isinstance(each, types.Serve) for node in (active, backup) for each in pair.effects[node])]
    for _ in range(50):  # five seconds, in which always one of the two has a carrier
        for faulty, well in ((backup, active), (active, backup)):
            pair.hear(well, MENDED)
            pair.hear(faulty, FAULT)
            pair.pass_ms(50)
    served.append(sum(isinstance(each, types.Serve) for node in (active, backup) for each in pair.effects[node]))
    assert 3 <= served[1] - served[0] <= 8, "of a hundred faults"
    assert active.status(pair.now).hold_down_ns + backup.status(pair.now).hold_down_ns > 0


def test_a_node_that_falls_silent_is_replaced_without_delay() -> None:
    pair = Pair()
    active, backup = (pair.one, pair.two) if pair.one.serving else (pair.two, pair.one)
    for node in (active, backup):
        for _ in range(5):
            node._hold_down.left(node._now)
    active._hold_down.opened(pair.now)
    pair.dead.add(active)
    pair.pass_ms(60)
    assert backup.serving
