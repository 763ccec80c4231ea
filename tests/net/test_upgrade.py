"""From 0.1.0 to this version: state and pins are adopted, and a pair of both versions works as a pair of one.

Each test of the pair runs in both directions, 0.1.0 active and this version active, and begins by restarting nodes with
the other version one after the other, as docs/OPERATIONS.md describes an upgrade.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf.loading.loader import BUILD_LINK, HANDLERS, PROGRAM, RESETTABLE
from ctl.config import prefixes
from ctl.errors import Code, XlbError
from tests.earlier import code_of
from tests.net.faults import FAULTS, Cost, Observer, ProbeFarm
from tests.net.paired import PairSite, paired
from tests.net.serving import BACKEND_PORTS, PORTS, VIPS, Serving
from tests.refusals import refused
from tests.rig import CLIENT4, CLIENT6, VIP4, VIP6, HeldConnections, Layout, Node, Rig
from tests.tree import TREE
from tests.wait import wait_until

HELD = 300
NEWER = ("members", "servers", "server_ranges", "direct", "fragments")
OTHERWISE = {HANDLERS, "clocks", "turns", "rotation", "pressures", "new_pair_v4", "new_pair_v6", "farm_settings"}
WITHOUT_PAST = RESETTABLE | OTHERWISE | {f"{name}_v{n}" for name in NEWER for n in (4, 6)}
"""Not in 0.1.0, which removes them, or under another name: its new_pair is scratch now, its turns are rotation."""
HEALTH_CHECK = {"kind": "http", "path": "/health", "interval_ms": 500, "timeout_ms": 500, "rise": 2, "fall": 1}
TIMES = {"heartbeat_ms": 40, "lease_ms": 120, "takeover_ms": 140}
"""As in test_pair.py: slow enough for a machine that runs other tests at the same time."""

QUEUED_MS = 1.0
"""The node that was restarted resolves its next hops: its kernel may send a frame that was queued for one a moment late."""


@pytest.fixture(scope="module")
def old_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return code_of("0.1.0", tmp_path_factory.mktemp("0.1.0"))


def restart(node: Node, tree: Path) -> None:
    """Stop the daemon as a package upgrade does, and start the one of `tree`."""
    assert node.stop() == 0, node.tail()
    node.tree = tree
    node.start()


# --- one node ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def single(old_code: Path) -> Iterator[Serving]:
    """A node of 0.1.0 with farms, one of which has a backend that its health check took out."""
    with Rig(Layout()) as rig:
        rig.node.tree = old_code
        rig.node.start()
        site = Serving(rig)
        site.add_farm("tcp", 4, scheduler="roundrobin")  # no hash to derive a lost flow from
        site.add_farm("tcp", 6)
        site.add_farm("udp")
        site.add_farm("http", health=HEALTH_CHECK)
        rig.backend("b1").set_health("sick")
        wait_until(lambda: site.state("http4", "b1") == "down", "the health check")
        yield site


def pins(node: Node) -> dict[str, int]:
    """The pinned maps by name; a map that keeps its number keeps its entries."""
    return {path.name: path.stat().st_ino for path in node.bpf_dir.iterdir() if path.name not in (PROGRAM, BUILD_LINK)}


def exported(node: Node) -> dict[str, Any]:
    """The configuration in the form of both versions, as 0.1.0 has it: without prefix lists, and without the kind "none" of a
    farm that has no check."""
    document: dict[str, Any] = node.call("config.export")
    assert not document.pop("prefixes", [])
    for farm in document["farm"]:
        if farm.get("health", {}).get("kind") == "none":
            del farm["health"]["kind"]
            if not farm["health"]:
                del farm["health"]
    return document


def adopted(site: Serving, tree: Path, held: list[HeldConnections]) -> dict[str, Any]:
    """Restart the node with the code of `tree` and check that nothing is lost; returns its status."""
    farms, before = exported(site.node), pins(site.node)
    restart(site.node, tree)
    after = pins(site.node)
    lost = sorted(name for name in before if name not in WITHOUT_PAST and after.get(name) != before[name])
    assert lost == [], "maps that were made again, without their entries"
    assert exported(site.node) == farms
    assert site.state("http4", "b1") == "down", "known to be down before the first check"
    for each in held:
        assert site.rig.client.run(each.confirm()) == 0
        assert (each.broken, each.wrong_bytes) == ([], 0)
    assert site.node.call("conn.count", farm="tcp4")["total"] >= HELD
    assert site.node.call("conn.count", farm="tcp6")["total"] >= HELD
    assert not site.http().error and not site.udp().error
    addresses = site.node.namespace.run("ip", "-o", "address", "show").stdout
    assert VIP4 in addresses and VIP6 in addresses
    status: dict[str, Any] = site.node.call("status")
    return status


def test_a_single_node_is_upgraded_and_downgraded(single: Serving, old_code: Path) -> None:
    held = [HeldConnections(VIPS[family], PORTS["tcp"], HELD) for family in (4, 6)]
    for each in held:
        single.rig.client.run(each.open())
    assert adopted(single, TREE, held)["pins"]["origin"] in ("adopted", "upgraded")
    single.node.xlbctl("farm", "set", "udp4", "--scheduler", "source")  # stored by this version, read by 0.1.0
    adopted(single, old_code, held)
    adopted(single, TREE, held)
    clients = prefixes.parse_texts("clients", (CLIENT4, CLIENT6), "clients")
    single.node.call("prefixes.set", name="clients", **prefixes.packed(clients))
    for family, each in zip((4, 6), held, strict=True):  # maps of 0.1.0 under a program that is compiled for lists
        single.node.call("farm.set", name=f"tcp{family}", deny="clients")
        dropped = single.counters()["drop_denied"]
        assert single.tcp(family, timeout_s=0.3).error and single.counters()["drop_denied"] > dropped
        assert single.rig.client.run(each.confirm()) == 0
        single.rig.client.run(each.close())


# --- a pair ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(old_code: Path) -> Iterator[PairSite]:
    """Starts as a pair of 0.1.0."""
    with paired(cluster=TIMES, tree=old_code) as site:
        site.add_farm("tcp")
        with ProbeFarm(site.rig, site.node):
            yield site


def upgrade(site: PairSite, node: Node, tree: Path) -> None:
    """Restart `node` with the code of `tree`, and wait until both nodes are in step."""
    if node.tree != tree:
        restart(node, tree)
        site.settle()


def arrange(site: PairSite, active: Path, backup: Path) -> None:
    """Have one node run each version, `active` on the active one."""
    site.settle()
    if (site.node.tree, site.other.tree) == (active, backup):
        return
    upgrade(site, site.other, active)
    site.node.xlbctl("cluster", "switchover")
    site.settle()
    upgrade(site, site.other, backup)
    assert (site.node.tree, site.other.tree) == (active, backup)


@pytest.fixture(scope="module", params=["0.1.0 is active", "this version is active"])
def active_version(request: pytest.FixtureRequest) -> str:
    """Of the module, so that the tests of one direction follow each other and restart no node between them."""
    return str(request.param)


@pytest.fixture
def mixed(active_version: str, pair: PairSite, old_code: Path) -> PairSite:
    """The pair, with a different version on each node."""
    active, backup = (old_code, TREE) if active_version == "0.1.0 is active" else (TREE, old_code)
    arrange(pair, active, backup)
    return pair


def farm_names(exported: dict[str, Any]) -> set[str]:
    return {farm["name"] for farm in exported["farm"]}


def in_force_on_both(site: PairSite) -> dict[str, Any]:
    """Wait until both nodes run and store the same configuration, and return it."""

    def same() -> bool:
        one, other = (exported(node) for node in site.rig.nodes)
        return one == other

    wait_until(same, "the same configuration on both nodes")
    one, other = (stored(node) for node in site.rig.nodes)
    assert one == other
    return exported(site.node)


def stored(node: Node) -> tuple[dict[str, Any], list[str]]:
    """The header of the stored record and its other lines. 0.1.0 stores neither the sizes of lookup tables nor the user of the
    change in the header, nor a digest over them; the sizes are this version's to choose again once both nodes run it."""
    header, *lines, _digest = (node.state_dir / "farms.jsonl").read_text().splitlines()
    fields = json.loads(header)
    fields.pop("table_sizes", None)
    fields.pop("provenance", None)
    return fields, lines


def assert_harmless(cost: Cost) -> None:
    assert cost.both_ms < QUEUED_MS, cost
    assert cost.harmless, cost


def test_a_pair_is_upgraded_node_by_node(pair: PairSite, old_code: Path) -> None:
    arrange(pair, old_code, old_code)
    before, clients = in_force_on_both(pair), chosen(pair)
    with pair.holding(HELD) as held, Observer(pair.rig, held) as observer:
        first, second = pair.node, pair.other
        upgrade(pair, second, TREE)
        assert pair.node is first, "the restart of a backup moves nothing"
        observer.strike(FAULTS["SIGTERM"], first)  # which hands over
        first.tree = TREE
        first.start()
        pair.settle()
        assert_harmless(observer.cost())
        assert pair.node is second
    assert in_force_on_both(pair) == before and chosen(pair) == clients
    backend = {"farm": "tcp4", "address": pair.rig.backends[0].address4, "port": BACKEND_PORTS["tcp"]}
    pair.node.call("backend.set", **backend, weight=9)  # by its backends the table would grow
    assert chosen(pair)[0] == clients[0], "the first change stores the size that the table had"
    in_force_on_both(pair)
    changed = chosen(pair)
    pair.node.xlbctl("cluster", "switchover")
    pair.settle()
    assert pair.node is first and chosen(pair) == changed
    pair.node.call("backend.set", **backend, weight=1)
    assert in_force_on_both(pair) == before and chosen(pair) == clients


def chosen(site: PairSite) -> tuple[int, list[str]]:
    """The size of a farm's lookup table on the active node, and the backends of some clients that are not connected."""
    ends = {"source": CLIENT4, "destination": VIP4, "destination_port": PORTS["tcp"], "protocol": "tcp"}
    shown = [site.node.call("conn.show", **ends, source_port=port) for port in range(1, 17)]
    return shown[0]["slots"], [each["backend"] for each in shown]


def test_the_nodes_know_each_other(mixed: PairSite) -> None:
    active, backup = (mixed.status(node) for node in (mixed.node, mixed.other))
    for status, peer in ((active, backup), (backup, active)):
        assert status["peer"]["alive"]
        assert (status["peer"]["name"], status["peer"]["role"]) == (peer["node"], peer["role"])
        assert status["paths"]["cluster"]
        assert status["epoch"] == active["epoch"]
        assert status["sync"]["in_step"]
    upgraded = next(node for node in mixed.rig.nodes if node.tree == TREE)
    own, earlier = upgraded.call("cluster.nodes")["nodes"]
    assert own["answered"] and not earlier["answered"] and "earlier version" in earlier["why_not"]
    wait_until(lambda: mixed.status(mixed.other)["paths"]["data"], "VRRP advertisements of the active node")


@pytest.mark.parametrize("asked", ["the active node", "the backup"])
def test_configuration_changes_on_either_node(mixed: PairSite, asked: str) -> None:
    node = mixed.node if asked == "the active node" else mixed.other
    new = next(each for each in mixed.rig.nodes if each.tree == TREE)
    before, generation = in_force_on_both(mixed), new.call("status")["generation"]
    node.xlbctl("vip", "add", f"{VIP6}/64", "--dev", "eth0")
    node.xlbctl("farm", "add", "web", "--vip", VIP6, "--port", "80", "--scheduler", "source")
    node.xlbctl("backend", "add", "web", "[fd77::21]:8080", "--weight", "3")
    node.xlbctl("backend", "drain", "web", "[fd77::21]:8080")
    changed = in_force_on_both(mixed)
    web = next(farm for farm in changed["farm"] if farm["name"] == "web")
    assert (web["scheduler"], web["backend"][0]["weight"], web["backend"][0]["draining"]) == ("source", 3, True)
    assert VIP6 in mixed.addresses(mixed.node) and VIP6 not in mixed.addresses(mixed.other)
    if node is new:
        new.xlbctl("rollback", str(generation))
    else:
        node.call("config.apply", document=before)
    assert in_force_on_both(mixed) == before
    assert new.json("history")["generations"][0]["in_force"]


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("farm.add", {"name": "web", "vip": VIP4, "port": 70000}),
    ("farm.add", {"name": "web", "vip": VIP6, "port": 80}),
    ("farm.delete", {"name": "nowhere"}),
    ("backend.add", {"farm": "tcp4", "address": "10.77.0.21", "port": PORTS["tcp"]}),
    ("vip.add", {"address": "10.77.0.111/24", "device": "nodev0"}),
    ("config.apply", {"document": {"farm": [{"name": "web", "vip": VIP4, "port": 80, "scheduler": "fast"}]}}),
]


def test_refused_changes_are_reported_alike_on_either_node(mixed: PairSite) -> None:
    """The active node's error reaches the asker of the backup with its kind, message and key."""
    before = in_force_on_both(mixed)
    for command, arguments in REFUSED:
        direct, forwarded = (refusal(node, command, arguments) for node in (mixed.node, mixed.other))
        assert forwarded == direct, command
        assert all(direct[:2]), command
    assert in_force_on_both(mixed) == before


def test_a_setting_that_the_other_version_does_not_know_is_refused(mixed: PairSite) -> None:
    before, old = in_force_on_both(mixed), next(node for node in mixed.rig.nodes if node.tree != TREE)
    new = next(node for node in mixed.rig.nodes if node is not old)

    def answer() -> str:
        return new.xlbctl("farm", "set", "tcp4", "--on-no-backend", "drop", expect=1).stderr

    assert f"farm.tcp4.on_no_backend is not known to {old.name}" in answer() and f"upgrade xlb on {old.name} first" in answer()
    with refused(Code.PEER_VERSION) as caught:
        new.call("prefixes.set", name="office", v4="", v6="")
    assert f"prefixes.office is not known to {old.name}" in str(caught.value)
    done = new.xlbctl("user", "add", "alice", stdin="correct horse battery\n", expect=1)
    assert f"user.alice is not known to {old.name}" in done.stderr and f"upgrade xlb on {old.name} first" in done.stderr
    if mixed.node is old:
        with refused(Code.PEER_VERSION) as caught:
            new.call("farm.stop", name="tcp4", if_version="0-0")
        assert f"{old.name}, which accepts changes at this moment, runs an earlier xlb" in str(caught.value)
    assert new.call("user.list") == [] and in_force_on_both(mixed) == before


def refusal(node: Node, command: str, arguments: dict[str, Any]) -> tuple[str, str, str]:
    """Kind, message and key of the error with which `node` refuses a command."""
    with pytest.raises(XlbError) as caught:
        node.call(command, **arguments)
    return caught.value.kind, str(caught.value), caught.value.key


def test_a_change_during_the_upgrade_of_the_backup(mixed: PairSite) -> None:
    """The backup is away, as while its package is upgraded; it takes the change over when it is back."""
    assert mixed.other.stop() == 0
    changed = mixed.node.xlbctl("farm", "add", "late", "--vip", VIP4, "--port", "99")
    assert mixed.other.name in changed.stderr, "the answer names the absent peer"
    mixed.other.start()
    mixed.settle()
    assert "late" in farm_names(in_force_on_both(mixed))
    mixed.node.call("farm.delete", name="late")
    in_force_on_both(mixed)
    assert not [path for node in mixed.rig.nodes for path in node.state_dir.glob("farms.conflict-*")]


def test_switchover_to_the_other_version_and_back(mixed: PairSite) -> None:
    first, second = mixed.node, mixed.other
    with mixed.holding(HELD) as held:
        for node, successor in ((first, second), (second, first)):
            with Observer(mixed.rig, held) as observer:
                observer.strike(FAULTS["switchover"], node)
                assert_harmless(observer.cost())
            mixed.settle()
            assert mixed.node is successor


def test_takeover_after_silence(mixed: PairSite) -> None:
    """Both lease and takeover time of the other version hold: a node that is killed is replaced, and never two answer."""
    first, second = mixed.node, mixed.other
    epoch = mixed.status(first)["epoch"]
    with mixed.holding(HELD) as held:
        with Observer(mixed.rig, held) as observer:
            observer.strike(FAULTS["kill -9"], first)
            assert_harmless(observer.cost())
        first.start()
        mixed.settle()
        assert mixed.node is second
        assert mixed.status(second)["epoch"] > epoch
