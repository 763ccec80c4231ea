"""Histories of the pair under faults, and the proof that they would notice a broken rule."""

from __future__ import annotations

import os

import pytest

from sync.failover.timing import NS_PER_MS as MS
from sync.failover.types import Vote
from tests.sim.mutations import MUTATIONS, Mutation, killed_by
from tests.sim.world import PROFILES, Profile, Violation, World

SEEDS = int(os.environ.get("XLB_SIM_SEEDS", "2000"))
BLOCKS = 8
HISTORIES_PER_MUTATION = 2000


@pytest.mark.parametrize("block", range(BLOCKS))
def test_no_history_breaks_a_rule(block: int) -> None:
    for seed in range(block, SEEDS, BLOCKS):
        World(seed).run()


def test_a_seed_replays_exactly() -> None:
    for seed in range(4):
        first, second = World(seed), World(seed)
        first.run()
        second.run()
        assert first.history == second.history
        assert first.now == second.now and first.order == second.order


def test_histories_differ_and_faults_happen() -> None:
    told = []
    for seed in range(80):
        world = World(seed)
        world.run()
        told.append("\n".join(world.history))
    assert len(set(told)) == len(told)
    text = "\n".join(told)
    assert "lease_ms is 120, but" in text and "has lease_ms 30, this node 90: takeovers here wait" in text
    for fault in {fault for profile in PROFILES for fault in profile.faults}:
        assert f"FAULT {fault} " in text or fault in ("crash_both", "pause_blind", "isolate", "cut_vote"), fault


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_broken_rule_is_found(mutation: Mutation) -> None:
    found = killed_by(mutation, HISTORIES_PER_MUTATION)
    assert found, f"{HISTORIES_PER_MUTATION} histories did not notice: {mutation.name}"
    print(f"{mutation.name}: seed {found[0]}: {found[1]}")


@pytest.mark.parametrize("fault", ["crash", "pause"])
def test_a_dead_daemon_costs_the_margin(fault: str) -> None:
    """From the kernel's closing on one node to its opening on the other: takeover minus lease, and what timers are late."""
    gaps_ms = []
    for seed in range(200):
        world = World(seed, Profile("one fault", Vote.NONE, ("crash",), exclusive=True, delay_ns=MS // 2), faults=0)
        for node in world.nodes:
            node.drift_ppm = 0
        gaps_ms.append(outage_ms(world, fault))
    gaps_ms.sort()
    median, worst = gaps_ms[len(gaps_ms) // 2], gaps_ms[-1]
    print(f"{fault}: nobody answers for {median:.1f} ms (median), {worst:.1f} ms (worst of {len(gaps_ms)})")
    assert gaps_ms[0] > 0
    assert median <= 12 and worst <= 25


def outage_ms(world: World, fault: str) -> float:
    """Let the active node's daemon die or stop at a random moment; returns how long no lease is open after that."""
    world.at(0, world.nodes[0].boot)
    world.at(MS, world.nodes[1].boot)
    world.run_until(300 * MS + world.rng.randint(0, 10 * MS))
    active = next(node for node in world.nodes if node.failover.serving)
    other = world.nodes[1 - active.index]
    active.crash(power=False) if fault == "crash" else active.pause()
    closed_at = 0
    while not other.kernel_open():
        world.run_until(world.now + MS // 20)
        if not closed_at and not active.kernel_open():
            closed_at = world.now
        assert world.now < 400 * MS
    return (world.now - closed_at) / MS


def test_a_violation_says_how_to_replay() -> None:
    world = World(5)
    with pytest.raises(Violation, match=r"python -m tests\.sim --replay 5"):
        world.fail("on purpose")
