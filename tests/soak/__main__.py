"""Random faults on a pair that carries 1,000 held connections, round after round; what the clients and the operator lose.

    sudo make soak MINUTES=60            or: unshare --mount .venv/bin/python -m tests.soak --minutes 60

A round: one fault (sometimes two that overlap) of random kind, length and victim; changes of the configuration before, during
and after it; then every fault is healed, and the pair has CONVERGE_S to have one active and one backup in step again. All the
time somebody forges and replays VRRP advertisements. Half of the time runs at 10/30/36 ms, half at the default times. After
each round: no connection is broken, no byte is wrong, no two nodes answered at once (data, ARP, NDP, captured on the switch),
every acknowledged change is on both nodes, and the VIPs are on the active node only. A round that fails is printed with its
faults and both journals. Exits 1 if one failed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ctl.errors import XlbError
from tests.net.faults import capture, epochs_of
from tests.net.forger import Forger
from tests.net.paired import DEFAULT_TIMING, TIMING, PairSite, write_pair
from tests.net.serving import PORTS, VIPS
from tests.rig import CLIENT4, HeldConnections, Layout, Node, Rig, why_not
from tests.rig.capture import overlap_ms
from tests.soak.faults import FAULTS, Heal, Stage
from tests.soak.ledger import Ledger
from tests.wait import wait_until

CONVERGE_S = 2.0
GIVE_UP_S = 60.0
CONFIRM_S = 60.0  # a sender that met a pause of 15 s tries again after up to 30 s
SECOND_FAULT = 0.25
SPREAD_S = 1.0
STATE_MB = 4
CLONE_NEWNS = 0x00020000
TIMES = {"fast": TIMING, "default": DEFAULT_TIMING}


@dataclass(slots=True)
class Score:
    """What all rounds at one timing add up to."""

    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    broken: int = 0
    wrong_bytes: int = 0
    both_ms: float = 0.0
    late: int = 0  # rounds that took longer than CONVERGE_S
    slowest_s: float = 0.0
    lost: int = 0  # acknowledged changes
    failures: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--times", choices=(*TIMES, "both"), default="both")
    parser.add_argument("--faults", default=",".join(FAULTS), help="comma-separated (default: %(default)s)")
    chosen = parser.parse_args()
    if reason := why_not():
        print(f"cannot run here: {reason}", file=sys.stderr)
        return 1
    names = [name.strip() for name in chosen.faults.split(",")]
    if unknown := set(names) - FAULTS.keys():
        parser.error(f"--faults: there is no {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    _own_mounts()
    times = TIMES if chosen.times == "both" else {chosen.times: TIMES[chosen.times]}
    failed = False
    for name, timing in times.items():
        print(f"seed {chosen.seed}, {name} times {'/'.join(map(str, timing.values()))} ms", flush=True)
        score = soak(timing, 60 * chosen.minutes / len(times), random.Random(chosen.seed), chosen.connections, names)
        _print(score)
        failed |= bool(score.failures)
    return 1 if failed else 0


def _own_mounts() -> None:
    """The small file systems of this run vanish with it, whatever its exit."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "cannot have mounts of its own")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def soak(timing: dict[str, int], duration_s: float, rng: random.Random, connections: int, names: list[str]) -> Score:
    """Play rounds for `duration_s` with `connections` held connections, a tenth of them IPv6."""
    score, ledger = Score(), Ledger()
    with _pair(timing) as site:
        stage = Stage(site, rng)
        forger = Forger(site.rig, 4)
        stage.learn_macs()
        counts = {4: connections - connections // 10, 6: connections // 10}
        held = {family: _open(site, family, count) for family, count in counts.items()}
        ends_s = time.monotonic() + duration_s
        with forger:  # what it has captured until now is replayed
            while time.monotonic() < ends_s:
                failures = _play(stage, held, ledger, score, names)
                score.rounds += 1
                if failures:
                    score.failures += failures
                    _report(site, score.rounds, failures)
                    for family, each in held.items():
                        if each.broken or each.wrong_bytes:
                            site.rig.client.run(each.close())
                            held[family] = _open(site, family, counts[family])
        for each in held.values():
            site.rig.client.run(each.close())
    print(f"forged and replayed advertisements: {forger.sent}")
    print(f"changes: {ledger.acknowledged} on both nodes, {ledger.alone} on one, {ledger.refused} refused")
    return score


@contextmanager
def _pair(timing: dict[str, int]) -> Iterator[PairSite]:
    """Two nodes with a gateway, each with a small file system for its state."""
    with Rig(Layout(nodes=2, backends=2)) as rig:
        for node in rig.nodes:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={STATE_MB}m", "tmpfs", str(node.state_dir)], check=True)
        try:
            write_pair(rig, {**timing, "gateway": CLIENT4})
            for node in rig.nodes:
                node.start()
            site = PairSite(rig)
            site.node.call("vip.add", address=f"{VIPS[6]}/64", device="eth0")
            for family in (4, 6):
                site.add_farm("tcp", family)
            yield site
        finally:
            for node in rig.nodes:
                subprocess.run(["umount", "--lazy", str(node.state_dir)], check=True)


def _open(site: PairSite, family: int, count: int) -> HeldConnections:
    site.settle(GIVE_UP_S)
    held = HeldConnections(VIPS[family], PORTS["tcp"], count, pause_s=SPREAD_S)
    site.rig.client.run(held.open())
    return held


def _play(stage: Stage, held: dict[int, HeldConnections], ledger: Ledger, score: Score, names: list[str]) -> list[str]:
    """One round. Returns what went wrong, one message each."""
    site, rng = stage.site, stage.rng
    before = {family: (len(each.broken), each.wrong_bytes) for family, each in held.items()}
    epochs = epochs_of(site.rig)
    watch = capture(site.rig, *VIPS.values(), macs=stage.macs)
    try:
        story = _strike_and_heal(stage, ledger, score, names)
        healed_s = time.monotonic()
        failures = []
        try:
            wait_until(lambda: _converged(site) or not _all_run(site), "the pair to converge", GIVE_UP_S)
        except AssertionError as error:
            failures.append(str(error))
        took_s = time.monotonic() - healed_s
        score.slowest_s = max(score.slowest_s, took_s)
        if took_s > CONVERGE_S:
            score.late += 1
            failures.append(f"converged {took_s:.1f} s after the last fault")
        ledger.change(rng.choice(site.rig.nodes))
        for family, each in held.items():
            silent = site.rig.client.run(each.confirm(CONFIRM_S), CONFIRM_S + 10) - len(each.broken)
            broken, wrong = len(each.broken) - before[family][0], each.wrong_bytes - before[family][1]
            score.broken, score.wrong_bytes = score.broken + broken + silent, score.wrong_bytes + wrong
            if broken or silent or wrong:
                failures.append(
                    f"IPv{family}: {broken} connections broken, {silent} silent, {wrong} wrong bytes: {set(each.broken)}"
                )
        both_ms = overlap_ms(watch.stop(), len(epochs_of(site.rig) - epochs))
        if both_ms:
            score.both_ms += both_ms
            failures.append(f"both nodes answered for {both_ms:.1f} ms")
        failures += _restart_the_dead(site)
        lost = ledger.judge(site.rig.nodes)
        score.lost += len(lost)
        failures += lost
        print(f"{score.rounds + 1}: {story}; converged in {took_s:.2f} s{'; FAILED' * bool(failures)}", flush=True)
        return [f"{story}: {failure}" for failure in failures]
    finally:
        watch.close()


def _strike_and_heal(stage: Stage, ledger: Ledger, score: Score, names: list[str]) -> str:
    """Strike once or twice, change the configuration meanwhile, heal. Returns what was done."""
    rng, site = stage.rng, stage.site
    nodes = list(site.rig.nodes)
    ledger.change(rng.choice(nodes))
    story: list[str] = []
    heals: list[tuple[float, Heal]] = []
    free = nodes[:]
    for _ in range(2 if rng.random() < SECOND_FAULT else 1):
        if not free:
            break
        name = rng.choice(names)
        fault = FAULTS[name]
        victims = free if fault.both else [rng.choice(free)]
        length_s = fault.length_s(rng)
        for victim in victims:
            role = "active" if victim is site.node else "backup"
            heals.append((time.monotonic() + length_s, fault.begin(stage, victim)))
            score.faults[name] += 1
            story.append(f"{name} of {victim.name} ({role}) for {length_s:.2f} s")
        free = [node for node in free if node not in victims]
    for due_s, heal in sorted(heals, key=lambda each: each[0]):
        _change_until(due_s, ledger, free)
        heal()
    return " + ".join(story)


def _change_until(due_s: float, ledger: Ledger, able: list[Node]) -> None:
    """Let time pass; meanwhile change the configuration through a node that no fault has struck."""
    for _ in _half_seconds_until(due_s):
        if able:
            ledger.change(able[0])


def _half_seconds_until(due_s: float) -> Iterator[None]:
    """Yields every half second until `due_s`."""
    while (left_s := due_s - time.monotonic()) > 0:
        yield
        left_s = due_s - time.monotonic()
        if left_s > 0:
            time.sleep(min(0.5, left_s))


def _converged(site: PairSite) -> bool:
    try:
        statuses = [node.call("cluster.status") for node in site.rig.nodes]
    except XlbError:
        return False
    roles = {status["role"] for status in statuses}
    if roles != {"active", "backup"} or len({status["generation"] for status in statuses}) != 1:
        return False
    if not all(status["sync"]["in_step"] for status in statuses):
        return False
    site.node = next(node for node in site.rig.nodes if node.name == next(s["node"] for s in statuses if s["role"] == "active"))
    carrying = [node for node in site.rig.nodes if any(f" {vip}/" in site.addresses(node) for vip in VIPS.values())]
    return carrying == [site.node]


def _all_run(site: PairSite) -> bool:
    return all(node.running for node in site.rig.nodes)


def _restart_the_dead(site: PairSite) -> list[str]:
    """One message per daemon that ended without having been stopped; as systemd would, start it again."""
    dead = [node for node in site.rig.nodes if not node.running]
    causes = [f"xlbd of {node.name} died, exit status {node.wait(1)}" for node in dead]
    for node in dead:
        _report(site, 0, causes)
        node.start()
    return causes


def _report(site: PairSite, number: int, failures: list[str]) -> None:
    print(f"--- round {number} failed:", *failures, sep="\n    ")
    for node in site.rig.nodes:
        print(f"--- {node.name}:", node.tail(30), sep="\n")
    sys.stdout.flush()


def _print(score: Score) -> None:
    print(f"{score.rounds} rounds; faults: {', '.join(f'{count} {name}' for name, count in sorted(score.faults.items()))}")
    print(
        f"{score.broken} broken, {score.wrong_bytes} wrong bytes, both answered {score.both_ms:.1f} ms, "
        f"{score.lost} acknowledged changes lost, "
        f"{score.late} rounds converged later than {CONVERGE_S:g} s (slowest {score.slowest_s:.2f} s)",
        flush=True,
    )


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
