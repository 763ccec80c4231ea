"""The program goes onto interfaces natively where it can, and never in the place of somebody else's."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpf import attach, libbpf
from bpf.attach import Attachment, Mode
from bpf.libbpf import AttachMode
from bpf.tables import PlaneError
from tests.bpf.bed import why_not
from tests.bpf.small import Small, small_plane
from tests.rig import xdp_pass
from tests.rig.namespaces import Namespace

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


@dataclass(slots=True)
class Node:
    """A namespace with two veths, a and b, whose far ends are a1 and b1, and a bridge, which has no native XDP."""

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
            state = libbpf.xdp_query(socket.if_nametoindex(interface))
            return state.mode, state.program_id

        return self.namespace.call(ask)

    def refused(self, interfaces: Sequence[str], mode: Mode = "auto") -> str:
        """The sentence of an attempt that must change nothing."""
        before = {name: self.on(name) for name in ("a", "b", "bridge")}
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
    links = [f"link add {name} type veth peer name {name}1" for name in ("a", "b")]
    ups = [f"link set {name} up" for name in ("a", "b", "a1", "b1")]
    namespace.ip(*links, *ups, "link add bridge type bridge")
    yield Node(small, namespace)
    namespace.close()


NATIVE, GENERIC, NOTHING = AttachMode.NATIVE, AttachMode.GENERIC, (AttachMode.NONE, 0)


def test_auto_is_native_where_the_driver_can(node: Node) -> None:
    done = node.attach(["a", "bridge"])
    assert done["a"] == Attachment("a", "native", "veth", "")
    assert (done["bridge"].mode, done["bridge"].driver) == ("generic", "bridge")
    assert "native mode failed: " in done["bridge"].reason and "does not support XDP" in done["bridge"].reason
    program = node.small.program_id()
    assert (node.on("a"), node.on("bridge")) == ((NATIVE, program), (GENERIC, program))


def test_auto_gives_the_kernels_reason(node: Node) -> None:
    node.namespace.ip("link set a1 mtu 9000")
    assert "Peer MTU is too large" in node.attach(["a"])["a"].reason


def test_doing_it_again_changes_nothing(node: Node) -> None:
    node.attach(["a", "bridge"])
    before = node.on("a"), node.on("bridge")
    again = node.attach(["a", "bridge"])
    assert (node.on("a"), node.on("bridge")) == before
    assert (again["a"].mode, again["bridge"].mode) == ("native", "generic")


def test_status_says_what_is_there(node: Node) -> None:
    node.attach(["a", "bridge"])
    found = node.attached(["a", "bridge", "b", "missing"])
    assert [(name, each and each.mode) for name, each in found.items()] == [
        ("a", "native"),
        ("bridge", "generic"),
        ("b", None),
        ("missing", None),
    ]


def test_native_without_the_driver_is_refused(node: Node) -> None:
    message = node.refused(["a", "bridge"], "native")
    assert "interface bridge (driver bridge)" in message and "data.xdp_mode" in message


def test_generic_is_generic(node: Node) -> None:
    assert node.attach(["a"], "generic")["a"].mode == "generic"
    assert node.on("a")[0] is GENERIC


def test_the_mode_may_be_changed_and_comes_back_if_it_cannot(node: Node) -> None:
    node.attach(["a"], "generic")
    node.namespace.ip("link set a1 mtu 9000")
    node.refused(["a"], "native")
    node.namespace.ip("link set a1 mtu 1500")
    node.attach(["a"], "native")
    assert node.on("a")[0] is NATIVE


def test_a_missing_interface_is_named(node: Node) -> None:
    assert "interface eth77 does not exist" in node.refused(["a", "eth77"])


@pytest.mark.parametrize("mode", ["auto", "native", "generic"])
def test_somebody_elses_program_stays(node: Node, mode: Mode) -> None:
    node.namespace.call(lambda: xdp_pass.attach(socket.if_nametoindex("b")))
    theirs = node.on("b")
    message = node.refused(["a", "b"], mode)
    assert f"interface b already has the XDP program {theirs[1]} (rig_pass)" in message
    assert "ip link set dev b xdp off" in message
    assert node.detach(["b"]) == []
    assert node.on("b") == theirs


def test_an_older_build_is_replaced_in_its_mode(node: Node, tmp_path: Path) -> None:
    node.attach(["a"], "native")
    node.attach(["bridge"])
    old = node.small.program_id()
    with small_plane(tmp_path) as newer:
        newer.write(("return XDP_PASS", "return XDP_DROP"))
        newer.ensure()
        upgraded = Node(newer, node.namespace)
        upgraded.attach(["a", "bridge"])
        new = newer.program_id()
        assert new != old
        assert (upgraded.on("a"), upgraded.on("bridge")) == ((NATIVE, new), (GENERIC, new))


def test_detach_takes_off_only_ours(node: Node) -> None:
    node.attach(["a", "bridge"])
    assert node.detach(["a", "bridge", "b", "missing"]) == ["a", "bridge"]
    assert node.on("a") == node.on("bridge") == NOTHING


def test_nothing_pinned_is_said(node: Node, tmp_path: Path) -> None:
    empty = tmp_path / "pins"
    with pytest.raises(PlaneError, match=f"no program is pinned in {empty}"):
        node.namespace.call(lambda: attach.attach(empty, ["a"]))


def test_without_pins_ours_is_known_by_its_name(node: Node, tmp_path: Path) -> None:
    node.attach(["a"])
    assert node.namespace.call(lambda: attach.detach(tmp_path / "pins", ["a"])) == ["a"]
    assert node.on("a") == NOTHING


def test_what_is_not_there_has_no_driver() -> None:
    assert attach.driver("missing") == ""
