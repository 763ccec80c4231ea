"""In a pair, what either node has as its own address is no VIP and no backend, whichever node is asked."""

from __future__ import annotations

from pathlib import Path

from ctl.errors import Code
from ctl.network.network import InterfaceAddress
from tests.fakes.pair import paired_sites
from tests.refusals import refused


def test_the_own_addresses_of_both_nodes_are_refused(tmp_path: Path) -> None:
    with paired_sites(tmp_path, vip="10.77.0.100/24") as (one, two):
        for site, address in ((one, "10.77.0.1"), (two, "10.77.0.2")):
            site.daemon.network.present.add(InterfaceAddress("eth0", address, 24))
        one.call("farm.add", name="web", vip="10.77.0.100", port=80)
        for asked in (one, two):
            for address, node in (("10.77.0.1", "lb1"), ("10.77.0.2", "lb2")):
                with refused(Code.OWN_ADDRESS) as caught:
                    asked.call("vip.add", address=f"{address}/24", device="eth0")
                assert f"{node}'s own address" in str(caught.value)
                with refused(Code.OWN_ADDRESS):
                    asked.call("backend.add", farm="web", address=address, port=80)
        two.cut_links()
        for address in ("10.77.0.2", two.address):  # by its last answer
            with refused(Code.OWN_ADDRESS if address == "10.77.0.2" else Code.INVALID_VALUE):
                one.call("backend.add", farm="web", address=address, port=80)
        one.call("vip.add", address="10.77.0.2/24", device="eth0", force=True)
        assert "10.77.0.2" in {vip["address"] for vip in one.call("vip.list")}
