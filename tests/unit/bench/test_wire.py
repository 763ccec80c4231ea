"""The pure parts of bench.wire: frames and their checksums, configurations of the balancers, what measuring programs print."""

from __future__ import annotations

import json

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from bench.wire.balancers import farms_document, haproxy_configuration, nftables_rules, nftlb_farms, udp_backends
from bench.wire.outputs import Unexpected, iperf3_mbit_per_s, percentile, wrk_per_s
from bench.wire.packets import FAMILIES, FIRST_SOURCE, V4, V6, VIP_PORT, Family, Template, template, words
from bench.wire.site import SERVERS, SOURCES6, VIPS

MACS = bytes(range(12))
WRK = """\
Running 1s test @ http://10.77.0.100:8080/
  1 threads and 32 connections
  14021 requests in 1.00s, 1.04MB read
{errors}Requests/sec:  14005.31
Transfer/sec:      1.04MB
"""


def _folded(value: int) -> int:
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return ~value & 0xFFFF


def _varied(family: Family, found: Template, flow: int) -> bytes:
    """As `generate` of programs.c makes a frame of the template."""
    frame, transport = bytearray(found.frame), 14 + family.network_bytes
    address, port = FIRST_SOURCE + flow, 1024 + flow % 64512
    differing = (address & 0xFFFF) + (address >> 16)
    frame[family.source_word_offset : family.source_word_offset + 4] = address.to_bytes(4, "big")
    frame[transport : transport + 2] = port.to_bytes(2, "big")
    if family is V4:
        frame[24:26] = _folded(found.network_sum + differing).to_bytes(2, "big")
    frame[transport + 6 : transport + 8] = _folded(found.transport_sum + differing + port).to_bytes(2, "big")
    return bytes(frame)


@pytest.mark.parametrize("flow", [0, 1, 65535, 65536, 1_000_003, (1 << 30) - 1])
@pytest.mark.parametrize("version", [4, 6])
def test_every_flow_has_right_checksums(version: int, flow: int) -> None:
    family = FAMILIES[version]
    raw = _varied(family, template(family, MACS, SOURCES6, VIPS[version], VIP_PORT), flow)
    assert len(raw) == family.frame_bytes
    packet = Ether(raw)
    assert packet[UDP].sport == 1024 + flow % 64512
    wanted = packet.copy()
    del wanted[UDP].chksum
    if version == 4:
        del wanted[IP].chksum
    assert Ether(bytes(wanted)) == packet
    assert packet[IP if version == 4 else IPv6].dst == VIPS[version]


def test_offsets_are_those_of_the_headers() -> None:
    frame = template(V6, MACS, SOURCES6, VIPS[6], VIP_PORT).frame
    assert frame[V6.protocol_offset] == template(V4, MACS, "", VIPS[4], VIP_PORT).frame[V4.protocol_offset] == 17
    assert (V4.source_word_offset, V6.source_word_offset) == (26, 34)


def test_words_are_padded_with_zeros() -> None:
    assert words(b"\x01\x02\x03") == 0x0102 + 0x0300


def test_every_balancer_gets_the_same_backends() -> None:
    backends = udp_backends(4)
    assert len(set(backends)) == 64
    rules, farms = nftables_rules(snat=True), nftlb_farms()["farms"]
    assert isinstance(farms, list)
    assert all(f"{address} . {port}" in rules for address, port in backends)
    assert {(each["ip-addr"], int(each["port"])) for each in farms[0]["backends"]} == set(backends)
    document = farms_document(dnat=False)["farm"]
    assert isinstance(document, list)
    assert [(each["address"], each["port"]) for each in document[0]["backend"]] == backends
    assert haproxy_configuration(VIPS[4]).count("server s") == 3 * SERVERS


def test_snat_and_flowtables_are_options() -> None:
    assert "snat to" not in nftables_rules(snat=False)
    assert "devices = { eth0, eth1 }" in nftables_rules(snat=True, flowtable=("eth0", "eth1"))
    assert "flow" not in nftables_rules(snat=True)


def test_iperf3_is_read() -> None:
    assert iperf3_mbit_per_s(json.dumps({"end": {"sum_received": {"bits_per_second": 5.5e9}}})) == 5500
    with pytest.raises(Unexpected, match="unable to connect"):
        iperf3_mbit_per_s(json.dumps({"error": "unable to connect"}))


def test_wrk_is_read_and_failed_connections_are_no_measurement() -> None:
    assert wrk_per_s(WRK.format(errors="")) == 14005.31
    assert wrk_per_s(WRK.format(errors="  Socket errors: connect 0, read 0, write 0, timeout 0\n")) == 14005.31
    with pytest.raises(Unexpected, match="read 3"):
        wrk_per_s(WRK.format(errors="  Socket errors: connect 0, read 3, write 0, timeout 0\n"))
    with pytest.raises(Unexpected):
        wrk_per_s("unable to connect")


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(each) for each in range(1000, 0, -1)]
    assert [percentile(values, percent) for percent in (50, 99, 99.9, 100)] == [500, 990, 999, 1000]
    assert percentile([7.0], 99.9) == 7
