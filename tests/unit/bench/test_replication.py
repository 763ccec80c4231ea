"""The pure parts of bench.replication: messages of ctnetlink, what conntrackd and the kernel print, shares of a core."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from bench.replication import ctnetlink
from bench.replication.conntrackd import numbers_of
from bench.replication.subject import device_bytes, lags, processor_s, shares

MODEL = {"client": "192.0.2.1", "vip": "10.77.0.100", "node": "10.77.0.1", "backend": "192.0.2.2"}
STATISTICS = """\
cache internal:
current active connections:\t           7
connections created:\t\t           9\tfailed:\t           0

cache external:
current active connections:\t           3
connections created:\t\t           5\tfailed:\t           1

traffic processed:
                   0 Bytes                         0 Pckts
"""
DEVICES = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
   ha0:    2000       2    0    0    0     0          0         0      300       3    0    0    0     0       0          0
"""


def _decoded(raw: bytes) -> nfct_msg:
    message = nfct_msg(raw)
    message.decode()
    return message


def test_a_new_entry_is_what_the_kernel_expects() -> None:
    found = _decoded(ctnetlink.message(ctnetlink.CREATE, ctnetlink.ESTABLISHED, 60, **MODEL))
    assert found["header"]["length"] == len(ctnetlink.message(ctnetlink.CREATE, ctnetlink.ESTABLISHED, 60, **MODEL))
    original = found.get_attr("CTA_TUPLE_ORIG")
    assert original.get_attr("CTA_TUPLE_IP").get_attr("CTA_IP_V4_SRC") == MODEL["client"]
    assert original.get_attr("CTA_TUPLE_IP").get_attr("CTA_IP_V4_DST") == MODEL["vip"]
    assert original.get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_DST_PORT") == 80
    assert found.get_attr("CTA_TIMEOUT") == 60
    state = found.get_attr("CTA_PROTOINFO").get_attr("CTA_PROTOINFO_TCP").get_attr("CTA_PROTOINFO_TCP_STATE")
    assert state == ctnetlink.ESTABLISHED


def test_a_change_names_the_entry_and_creates_none() -> None:
    found = _decoded(ctnetlink.message(ctnetlink.UPDATE, ctnetlink.TIME_WAIT, 60, **MODEL))
    assert not found["header"]["flags"] & 0x400  # NLM_F_CREATE
    assert found.get_attr("CTA_TUPLE_REPLY") is None


def test_copies_differ_in_the_addresses_that_count() -> None:
    pattern = ctnetlink.message(ctnetlink.CREATE, ctnetlink.ESTABLISHED, 60, **MODEL)
    rows = ctnetlink.messages(pattern, {MODEL["client"]: 0x0A000000, MODEL["backend"]: 0x0B000000}, np.arange(255, 258))
    clients = [
        _decoded(row.tobytes()).get_attr("CTA_TUPLE_ORIG").get_attr("CTA_TUPLE_IP").get_attr("CTA_IP_V4_SRC") for row in rows
    ]
    assert clients == ["10.0.0.255", "10.0.1.0", "10.0.1.1"]
    assert b"\x0b\x00\x01\x00" in rows[1].tobytes()
    assert rows.shape[1] == len(pattern)


def test_a_section_of_the_statistics() -> None:
    assert numbers_of(STATISTICS, "cache external") == {"current active connections": 3, "connections created": 5}
    assert numbers_of(STATISTICS, "external inject") == {}


def test_bytes_of_a_device() -> None:
    assert device_bytes(DEVICES, "ha0") == 2300
    with pytest.raises(ValueError, match="eth0"):
        device_bytes(DEVICES, "eth0")


def test_processor_time_of_a_process_includes_its_threads() -> None:
    assert processor_s([os.getpid()]) == pytest.approx(time.process_time(), abs=0.05)


def test_shares_and_lags() -> None:
    assert shares((1.0, 2.0), (1.5, 2.0), 10.0) == (5.0, 0.0)
    assert lags([1.0, 2.0], [1.5, 2.25]) == [500, 250]
