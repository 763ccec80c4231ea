"""The program is attached natively where the driver supports it, and never replaces another program."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpf import xdp
from bpf.dataplane import PlaneError
from bpf.kernel import attach
from bpf.kernel.attach import Attachment, Mode
from bpf.xdp import AttachMode
from tests.bpf.bed import why_not
from tests.bpf.small import Small, small_plane
from tests.rig import xdp_pass
from tests.rig.namespaces import Namespace

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@dataclass(slots=True)
class Node:
    """A namespace with two veths, va and vb, whose far ends are va1 and vb1, and a bridge, which has no native XDP."""

    small: Small
    namespace: Namespace

    def attach(self, interfaces: Sequence[str], mode: Mode = "auto") -> dict[str, Attachment]:
        return self.namespace.call(lambda: attach.attach(self.small.build.bpf_dir, interfaces, mode))

    def detach(self, interfaces: Sequence[str]) -> list[str]:
        return self.namespace.call(lambda: attach.detach(self.small.build.bpf_dir, interfaces))

    def attached(self, interfaces: Sequence[str]) -> dict[str, Attachment | None]:
        return self.namespace.call(lambda: attach.attached(self.small.build.bpf_dir, interfaces))

    def on(self, interface: str) -> tuple[AttachMode, int]:
        def ask() -> tuple[AttachMode, int]:
            state = xdp.query(socket.if_nametoindex(interface))
            return state.mode, state.program_id

        return self.namespace.call(ask)

    def refused(self, interfaces: Sequence[str], mode: Mode = "auto") -> str:
        """The message of an attempt that must change nothing."""
        before = {name: self.on(name) for name in ("va", "vb", "bridge")}
        with pytest.raises(PlaneError) as caught:
            self.attach(interfaces, mode)
        assert {name: self.on(name) for name in before} == before
        return str(caught.value)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Small]:
    with small_plane(tmp_path_factory.mktemp("attach")) as made:
        made.ensure()
        yield made


@pytest.fixture
def node(small: Small) -> Iterator[Node]:
    namespace = Namespace(f"xlb-attach-{secrets.token_hex(4)}")
    links = [f"link add {name} type veth peer name {name}1" for name in ("va", "vb")]
    ups = [f"link set {name} up" for name in ("va", "vb", "va1", "vb1")]
    namespace.ip(*links, *ups, "link add bridge type bridge")
    yield Node(small, namespace)
    namespace.close()


NATIVE, GENERIC, NOTHING = AttachMode.NATIVE, AttachMode.GENERIC, (AttachMode.NONE, 0)


def test_auto_is_native_where_all_drivers_can(node: Node) -> None:
    done = node.attach(["va", "vb"])
    assert (done["va"], done["vb"]) == (Attachment("va", "native", "veth", ""), Attachment("vb", "native", "veth", ""))
    program = node.small.program_id()
    assert (node.on("va"), node.on("vb")) == ((NATIVE, program), (NATIVE, program))


@pytest.mark.parametrize("first", [["va", "bridge"], ["va"]], ids=["at once", "later"])
def test_auto_is_generic_everywhere_if_one_driver_needs_it(node: Node, first: list[str]) -> None:
    """A packet that comes in by va leaves by the bridge, whose driver takes no frames of native programs."""
    node.attach(first)
    done = node.attach(["va", "bridge"])
    assert (done["bridge"].mode, done["bridge"].driver) == ("generic", "bridge")
    assert done["va"].mode == "generic"
    program = node.small.program_id()
    assert (node.on("va"), node.on("bridge")) == ((GENERIC, program), (GENERIC, program))


def test_auto_names_the_interface_that_needs_generic_mode(node: Node) -> None:
    done = node.attach(["va", "bridge"])
    assert "native mode failed: " in done["bridge"].reason and "does not support XDP" in done["bridge"].reason
    assert done["va"].reason == "bridge (driver bridge) is in generic mode, and packets pass between them"


def test_auto_gives_the_kernels_reason(node: Node) -> None:
    node.namespace.ip("link set va1 mtu 9000")
    assert "Peer MTU is too large" in node.attach(["va"])["va"].reason


def test_doing_it_again_changes_nothing(node: Node) -> None:
    node.attach(["va", "bridge"])
    before = node.on("va"), node.on("bridge")
    again = node.attach(["va", "bridge"])
    assert (node.on("va"), node.on("bridge")) == before
    assert (again["va"].mode, again["bridge"].mode) == ("generic", "generic")


def test_status_shows_what_is_attached(node: Node) -> None:
    node.attach(["va", "bridge"])
    found = node.attached(["va", "bridge", "vb", "missing"])
    assert [(name, each and each.mode) for name, each in found.items()] == [
        ("va", "generic"),
        ("bridge", "generic"),
        ("vb", None),
        ("missing", None),
    ]


def test_native_without_the_driver_is_refused(node: Node) -> None:
    message = node.refused(["va", "bridge"], "native")
    assert "interface bridge (driver bridge)" in message and "data.xdp_mode" in message


def test_generic_is_generic(node: Node) -> None:
    assert node.attach(["va"], "generic")["va"].mode == "generic"
    assert node.on("va")[0] is GENERIC


def test_the_mode_may_be_changed_and_comes_back_if_it_cannot(node: Node) -> None:
    node.attach(["va"], "generic")
    node.namespace.ip("link set va1 mtu 9000")
    node.refused(["va"], "native")
    node.namespace.ip("link set va1 mtu 1500")
    node.attach(["va"], "native")
    assert node.on("va")[0] is NATIVE


def test_a_missing_interface_is_named(node: Node) -> None:
    assert "interface eth77 does not exist" in node.refused(["va", "eth77"])


@pytest.mark.parametrize("mode", ["auto", "native", "generic"])
def test_another_program_stays(node: Node, mode: Mode) -> None:
    node.namespace.call(lambda: xdp_pass.attach(socket.if_nametoindex("vb")))
    theirs = node.on("vb")
    message = node.refused(["va", "vb"], mode)
    assert f"interface vb already has the XDP program {theirs[1]} (rig_pass)" in message
    assert "ip link set dev vb xdp off" in message
    assert node.detach(["vb"]) == []
    assert node.on("vb") == theirs


def test_an_older_build_is_replaced_in_its_mode(node: Node, tmp_path: Path) -> None:
    node.attach(["va"], "native")
    node.attach(["vb"], "generic")
    old = node.small.program_id()
    with small_plane(tmp_path) as newer:
        newer.write(("return XDP_PASS", "return XDP_DROP"))
        newer.ensure()
        upgraded = Node(newer, node.namespace)
        for name in ("va", "vb"):  # each alone: together they would be in one mode
            upgraded.attach([name])
        new = newer.program_id()
        assert new != old
        assert (upgraded.on("va"), upgraded.on("vb")) == ((NATIVE, new), (GENERIC, new))


def test_detach_takes_off_only_ours(node: Node) -> None:
    node.attach(["va", "bridge"])
    assert node.detach(["va", "bridge", "vb", "missing"]) == ["va", "bridge"]
    assert node.on("va") == node.on("bridge") == NOTHING


def test_missing_pins_are_named(node: Node, tmp_path: Path) -> None:
    empty = tmp_path / "pins"
    with pytest.raises(PlaneError, match=f"no program is pinned in {empty}"):
        node.namespace.call(lambda: attach.attach(empty, ["va"]))


def test_without_pins_ours_is_known_by_its_name(node: Node, tmp_path: Path) -> None:
    node.attach(["va"])
    assert node.namespace.call(lambda: attach.detach(tmp_path / "pins", ["va"])) == ["va"]
    assert node.on("va") == NOTHING


def test_what_is_not_there_has_no_driver() -> None:
    assert attach.driver("missing") == ""
