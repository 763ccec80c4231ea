"""An acknowledged change is never lost: the active node is killed while a client changes the configuration."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator

import pytest

from ctl.api.client import Client
from ctl.config.record_codec import decode
from ctl.errors import XlbError
from tests.net.paired import DEFAULT_TIMING, PairSite, paired
from tests.rig import CLIENT4, VIP4, Node
from tests.wait import wait_until

CHANGES_BEFORE_THE_CRASH = 5
ASKED = {"source": CLIENT4, "destination": VIP4, "destination_port": 80}
FATES = ("stay", "move", "end")


@pytest.fixture(scope="module")
def site() -> Iterator[PairSite]:
    with paired(cluster=DEFAULT_TIMING) as made:
        made.node.call("farm.add", name="web", vip=VIP4, port=80)
        made.node.call("backend.add", farm="web", address="10.77.0.21", port=8080, weight=1)
        yield made


def stored_weight(node: Node) -> int:
    """The configuration on the node's disk, whatever its daemon does."""
    return decode((node.state_dir / "farms.jsonl").read_bytes()).farms["web"].backends[0].weight


class Changer(threading.Thread):
    """Raises the weight by one with each change, until a change is not answered."""

    def __init__(self, node: Node, weight: int) -> None:
        super().__init__()
        self.node, self.weight = node, weight
        self.confirmed = weight  # the last that was answered as stored on both nodes
        self.changes = 0

    def run(self) -> None:
        with Client(self.node.run_dir / "control.sock", timeout_ms=5000) as client:
            while True:
                self.weight += 1
                wanted = {"farm": "web", "address": "10.77.0.21", "port": 8080, "weight": self.weight}
                try:
                    client.call("backend.set", wanted)
                except XlbError:
                    return
                if not client.note:
                    self.confirmed = self.weight
                self.changes += 1


@pytest.mark.parametrize("asked", ["the active node", "the backup"])
def test_a_change_that_was_confirmed_survives_the_death_of_the_active_node(site: PairSite, asked: str) -> None:
    site.settle()
    active, backup = site.node, site.other
    changer = Changer(active if asked == "the active node" else backup, stored_weight(active))
    changer.start()
    wait_until(lambda: changer.changes >= CHANGES_BEFORE_THE_CRASH, "some changes", 20)
    active.kill()
    changer.join(30)
    assert changer.confirmed > 1
    for node in (active, backup):
        assert changer.confirmed <= stored_weight(node) <= changer.weight
    wait_until(lambda: backup.call("cluster.status")["role"] == "active", "the takeover")
    assert backup.call("farm.show", name="web")["backends"][0]["weight"] >= changer.confirmed
    active.start()
    site.settle()
    wait_until(lambda: active.call("config.export") == backup.call("config.export"), "the same configuration again")
    assert not list(active.state_dir.glob("farms.conflict-*"))


def test_after_kill_9_amid_changes_the_successor_and_then_the_node_itself_go_back(site: PairSite) -> None:
    """Needs real processes: files, locks and names as a killed daemon leaves them."""
    site.settle()
    active, backup = site.node, site.other
    first = backup.call("status")["generation"]
    changer = Changer(active, stored_weight(active))
    changer.start()
    wait_until(lambda: changer.changes >= CHANGES_BEFORE_THE_CRASH, "some changes", 20)
    active.kill()
    changer.join(30)
    wait_until(lambda: backup.call("cluster.status")["role"] == "active", "the takeover")

    before = decode((backup.state_dir / "farms.jsonl").read_bytes())
    tried = backup.json("rollback", str(first), "--dry-run")
    assert not tried["applied"] and len(tried["changes"]) == 1 and tried["impact"]["connections"] == dict.fromkeys(FATES, 0)
    done = backup.json("rollback", str(first))
    assert done["changes"] == tried["changes"] and done["generation"] == before.generation + 1
    assert before.farms["web"].backends[0].weight > stored_weight(backup)
    newest, *earlier = backup.json("history")["generations"]
    assert (newest["generation"], newest["command"]) == (done["generation"], f"rollback to {first}")
    made = [each for each in earlier if each["generation"] > first]
    assert len(made) >= CHANGES_BEFORE_THE_CRASH and {each["node"] for each in made} == {active.name}
    assert {each["user"].split()[0] for each in [newest, *made]} == {"root"} and not [e for e in earlier if e["problem"]]

    active.start()
    site.settle()
    wait_until(lambda: active.call("status")["generation"] == done["generation"], "the same configuration again")
    for path in active.state_dir.glob("farms.history-*"):
        decode(path.read_bytes())
    own = [each["generation"] for each in active.json("history")["generations"]]
    assert own[0] == done["generation"] and first in own, "both from before the crash and from after it"


def test_the_backup_has_the_active_node_say_why(site: PairSite) -> None:
    site.settle()
    asked = ("why", CLIENT4, f"{VIP4}:80")
    wait_until(lambda: site.node.call("conn.why", **ASKED)["connects"], "a next hop of the backend that answers")
    own, passed_on = site.node.json(*asked), site.other.json(*asked)
    assert passed_on["connects"] and (passed_on["node"], passed_on["asked"]) == (site.node.name, site.other.name)
    same = [[each["name"] for each in answer["findings"]] for answer in (own, passed_on)]
    assert same[1] == ["peer", *same[0]]
    site.node.xlbctl("farm", "stop", "web")
    for node in (site.node, site.other):
        node.xlbctl(*asked, expect=1)
    site.node.xlbctl("farm", "start", "web")


def accounts_of(node: Node) -> dict[str, str]:
    """Users of xlb-web and their hashes on the node's disk, whatever its daemon does."""
    return {name: user.password_hash for name, user in decode((node.state_dir / "farms.jsonl").read_bytes()).users.items()}


def test_users_and_tokens_are_on_both_nodes_and_survive_kill_9(site: PairSite) -> None:
    """Needs real processes: a daemon that is killed while users are added, and its successor."""
    site.settle()
    active, backup = site.node, site.other
    active.xlbctl("user", "add", "alice", "--role", "operator", stdin="correct horse battery\n")
    token = json.loads(backup.xlbctl("-o", "json", "token", "add", "ci").stdout)["token"]
    assert accounts_of(active) == accounts_of(backup) and list(accounts_of(active)) == ["alice"]
    confirmed = set(accounts_of(active))

    def add_users() -> None:
        with Client(active.run_dir / "control.sock", timeout_ms=5000) as client, contextlib.suppress(XlbError):
            for number in range(200):
                user = f"user{number}"
                client.call("user.add", {"name": user, "password_hash": accounts_of(active)["alice"]})
                if not client.note:
                    confirmed.add(user)

    adding = threading.Thread(target=add_users)
    adding.start()
    wait_until(lambda: len(confirmed) > CHANGES_BEFORE_THE_CRASH, "some users", 20)
    active.kill()
    adding.join(30)
    wait_until(lambda: backup.call("cluster.status")["role"] == "active", "the takeover")
    assert confirmed <= {each["name"] for each in backup.call("user.list")}
    backup.xlbctl("user", "delete", "alice")

    active.start()
    site.settle()
    wait_until(lambda: accounts_of(active) == accounts_of(backup), "the same accounts again")
    assert "alice" not in accounts_of(active), "a node that returns brings no deleted account back"
    stored = active.call("web.accounts")["tokens"]
    assert [(each["name"], each["sha256"]) for each in stored] == [("ci", hashlib.sha256(token.encode()).hexdigest())]
    for path in active.state_dir.glob("farms.conflict-*"):  # of a user that was stored there alone at the moment of the kill
        assert len(decode(path.read_bytes()).users.keys() - confirmed) <= 1
    for node in (active, backup):
        assert {path.stat().st_mode & 0o777 for path in node.state_dir.glob("farms*.jsonl*")} == {0o600}
