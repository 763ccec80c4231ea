"""Tagged frames on real interfaces: native XDP below two devices that are said to be VLAN devices, because not every kernel
that runs the tests knows VLANs. It is attached, and told of them, as the daemon does it. vagrant/ has real VLAN devices.
"""

from __future__ import annotations

import contextlib
import functools
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import pytest

from bpf import xdp
from bpf.kernel import attach
from bpf.kernel.attach import Attachment
from ctl.dataplane.kernel.vlan_attacher import VlanAttacher
from ctl.network.kernel.kernel_network import KernelNetwork
from ctl.network.network import Interface
from tests.bpf.bed import FAMILIES, GATEWAY_MAC, NODE_IN_MAC, NODE_OUT_MAC, V4, Family, backend_mac, why_not
from tests.bpf.packets import arp, from_backend, from_client, rewritten
from tests.bpf.tagged_bed import PRIORITY, WIRINGS, Port, TaggedBed
from tests.rig import xdp_pass

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

ETH_P_ALL, SOL_PACKET, PACKET_AUXDATA = 3, 263, 8
AUXDATA = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata: status, lengths, offsets, tag
ARRIVES_S = 5.0  # bounds a test that fails


class Pretending(KernelNetwork):
    """The kernel's interfaces, of which in0 and out0 are said to be VLAN devices."""

    ports: Mapping[str, Port] = {}

    def interfaces(self) -> Mapping[str, Interface]:
        found = dict(super().interfaces())
        for name, at in self.ports.items():
            lower = found[at.lower].index
            found[name] = replace(found[name], lower=lower, kind="vlan", vlan_id=at.number, vlan_protocol=at.protocol)
        return found


class Cable:
    """The far end of an interface: sends frames, and receives them with the tag that the kernel put aside."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        self._socket.bind((name, 0))
        self._socket.settimeout(ARRIVES_S)

    def send(self, frame: bytes) -> None:
        self._socket.send(frame)

    def receive(self, wanted: bytes) -> bytes:
        """The next frame that ends with these bytes."""
        while True:
            frame, more, _, sender = self._socket.recvmsg(4096, 256)
            if not frame.endswith(wanted) or sender[2] == socket.PACKET_OUTGOING:
                continue
            (data,) = (data for level, kind, data in more if (level, kind) == (SOL_PACKET, PACKET_AUXDATA))
            *_, control, protocol = AUXDATA.unpack(data)
            tag = struct.pack("!HH", protocol, control) if protocol else b""
            return frame[:12] + tag + frame[12:]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def bed() -> Iterator[TaggedBed]:
    with TaggedBed({"vlans": True}) as made:
        for name in ("wire0", "wire1"):
            made.inside(functools.partial(xdp.attach, made.indexes[name], -1, xdp.XDP_FLAGS_DRV_MODE))
        for name in ("far0", "far1"):
            made.inside(functools.partial(xdp_pass.attach, made.namespace.interface_index(name)))
        yield made


@contextlib.contextmanager
def attached(bed: TaggedBed, wiring: str) -> Iterator[tuple[dict[str, Attachment], Callable[[str], Cable]]]:
    """The program attached for in0 and out0, and a way to open cables."""
    network = Pretending()
    network.ports = dict(zip(("in0", "out0"), WIRINGS[wiring], strict=True))
    attacher = VlanAttacher(
        bed.plane,
        network,
        lambda names, mode: attach.attach(bed.pins, names, mode),
        lambda names: attach.detach(bed.pins, names),
        "auto",
        lambda: True,
    )
    bed.ports = dict(network.ports)
    bed.reset()
    with contextlib.ExitStack() as stack:
        done = dict(bed.inside(lambda: attacher.attach(("in0", "out0"))))
        stack.callback(lambda: bed.inside(lambda: attacher.detach(("in0", "out0"))))

        def open_cable(name: str) -> Cable:
            cable: Cable = bed.inside(lambda: Cable(name))
            stack.callback(cable.close)
            return cable

        yield done, open_cable


def tagged(bed: TaggedBed, frame: bytes, side: str, priority: int = 0) -> bytes:
    return frame[:12] + bed.ports[side].tag(priority) + frame[12:]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("wiring", ["two interfaces", "one interface"])
def test_a_connection_between_two_vlans(bed: TaggedBed, family: Family, wiring: str) -> None:
    with attached(bed, wiring) as (done, open_cable):
        assert {name: (each.mode, each.device) for name, each in done.items()} == {
            name: ("native", port.lower) for name, port in bed.ports.items()
        }
        bed.farm(family.vip, (family.far(11), 8080))
        clients = open_cable("far0")
        backends = open_cable(bed.ports["out0"].lower.replace("wire", "far"))
        packet = from_client(family, payload=b"asked by the client")
        clients.send(tagged(bed, bytes(packet), "in0", PRIORITY))
        there = rewritten(packet, (family.vip, 40000), (family.far(11), 8080), (NODE_OUT_MAC, backend_mac(11)))
        assert backends.receive(there[-19:]) == tagged(bed, there, "out0")
        answer = from_backend(family, family.far(11), family.vip, 40000, payload=b"answered by the backend")
        back = rewritten(answer, (family.vip, 80), (family.client, 40000), (NODE_IN_MAC, GATEWAY_MAC))
        backends.send(tagged(bed, bytes(answer), "out0", PRIORITY))
        assert clients.receive(back[-23:]) == tagged(bed, back, "in0")


def test_the_kernel_gets_the_tag(bed: TaggedBed) -> None:
    with attached(bed, "two interfaces") as (_, open_cable):
        bed.farm(V4.vip, (V4.far(11), 8080))
        clients, kernel = open_cable("far0"), open_cable("wire0")
        for frame in (tagged(bed, arp(V4.vip), "in0", PRIORITY), arp(V4.vip)):
            clients.send(frame)
            assert kernel.receive(frame[20:]) == frame
        assert bed.plane.counters()["pass_neighbour"][0] == 1
