"""State files of 0.1.0: this version reads each of them, and 0.1.0 reads what this version writes.

Both are needed while a pair is upgraded node by node, and to downgrade a node again. The files in `written_by_0_1_0` are those
of the active node of a pair of 0.1.0 that was created with its own commands, configured, switched over and changed again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from bpf.maps import layout
from ctl.config.changes import change
from ctl.config.model import Config, Scheduler, Vip
from ctl.config.record_codec import Encoder
from ctl.health.check_machine import HealthChecks
from ctl.health.probes.runner import CheckRunner, load_down
from ctl.network.network import InterfaceAddress
from ctl.network.vip_addresses import VipAddresses
from ctl.state.cluster_file import ClusterFile
from ctl.state.epoch_file import EpochFile, EpochState
from ctl.state.store import Store
from tests.earlier import code_of
from tests.fakes.network import FakeNetwork

WRITTEN = Path(__file__).with_name("written_by_0_1_0")

READ_BY_0_1_0 = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from bpf import layout
from ctl.checks import load_down
from ctl.clusterfile import ClusterFile
from ctl.epochfile import EpochFile
from ctl.store import Store
from ctl.vips import VipAddresses

found = Path(sys.argv[1])
farms, (terms, warning) = Store(found).load(), EpochFile(found).load()
assert not farms.message and not warning, (farms.message, warning)
config = {name: getattr(farms.config, name) for name in type(farms.config).__slots__}
config |= {name: [asdict(each) for each in config[name].values()] for name in ("vips", "farms")}
layouts = layout.load(found)
print(json.dumps({
    "farms": config,
    "cluster": asdict(ClusterFile(found).load()),
    "epoch": asdict(terms),
    "down": sorted(load_down(found)),
    "addresses": sorted([each.device, each.address, each.prefix_length] for each in VipAddresses(None, found).ours),
    "layout": layouts and layouts.to_json(),
}))
"""


@pytest.fixture(scope="module")
def old_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return code_of("0.1.0", tmp_path_factory.mktemp("0.1.0"))


def read_by_0_1_0(old_code: Path, directory: Path) -> dict[str, Any]:
    """What the code of 0.1.0 finds in the files of a directory."""
    command = [sys.executable, "-c", READ_BY_0_1_0, str(directory)]
    done = subprocess.run(command, cwd=old_code, env={"PYTHONPATH": str(old_code)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def read_here(directory: Path) -> dict[str, Any]:
    """The same, by this version. `layout` is compared as a whole: it describes the maps of one build."""
    farms, (terms, warning) = Store(directory).load(), EpochFile(directory).load()
    assert (farms.message, warning) == ("", "")
    config: dict[str, Any] = {name: getattr(farms.config, name) for name in Config.__slots__}
    config |= {
        name: [asdict(each) for each in config[name].values()] for name in ("vips", "farms", "prefixes", "users", "tokens")
    }
    cluster, layouts = ClusterFile(directory).load(), layout.load(directory)
    found: dict[str, Any] = json.loads(
        json.dumps(
            {
                "farms": config,
                "cluster": cluster and asdict(cluster),
                "epoch": asdict(terms),
                "down": sorted(load_down(directory)),
                "addresses": sorted(
                    [each.device, each.address, each.prefix_length] for each in VipAddresses(FakeNetwork(), directory).ours
                ),
                "layout": layouts and layouts.to_json(),
            }
        )
    )
    return found


def missing(old: Any, new: Any, place: str = "") -> list[str]:
    """Where `new` lacks or differs from what 0.1.0 knows; a key that a later version adds is no difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [each for key, value in old.items() for each in missing(value, new.get(key), f"{place}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [each for number, pair in enumerate(zip(old, new, strict=True)) for each in missing(*pair, f"{place}[{number}]")]
    return [] if old == new else [f"{place}: {old!r} is now {new!r}"]


def test_farms_pair_and_epoch_of_0_1_0_are_read() -> None:
    config = Store(WRITTEN).load().config
    assert (config.generation, config.epoch, config.history) == (12, 3, ((0, 1), (2, 11)))
    assert config.vips["10.77.0.100"] == Vip("10.77.0.100", 24, "eth0")
    web, dns, plain = (config.farms[name] for name in ("web", "dns", "plain"))
    assert (web.scheduler, web.health.path, [each.weight for each in web.backends]) == (Scheduler.SOURCE, "/health", [5, 1])
    assert (dns.ports, dns.idle_timeout_s, dns.backends[0].draining) == ("5000-5009", 30, True)
    assert not plain.enabled
    cluster = ClusterFile(WRITTEN).load()
    assert cluster is not None
    assert (cluster.pair_id, cluster.own.name, cluster.peer.name) == (config.pair, "lb2", "lb1")
    assert EpochFile(WRITTEN).load() == (EpochState(3, 5, False, 300_000_000, 300_000_000), "")


def test_run_time_files_of_0_1_0_are_read() -> None:
    assert load_down(WRITTEN) == {3}
    ours = VipAddresses(FakeNetwork(), WRITTEN).ours
    assert ours == {InterfaceAddress("eth0", "10.77.0.100", 24), InterfaceAddress("eth0", "fd77::100", 64)}
    layouts = layout.load(WRITTEN)
    assert layouts is not None
    assert layouts.maps["flows_v4"].value_dtype.itemsize == layouts.maps["flows_v4"].value_size


def test_a_farm_of_0_1_0_that_had_no_health_check_keeps_none() -> None:
    assert Store(WRITTEN).load().config.farms["plain"].health.kind == "none"


def test_this_version_reads_what_0_1_0_reads(old_code: Path) -> None:
    assert missing(read_by_0_1_0(old_code, WRITTEN), read_here(WRITTEN)) == []


def test_0_1_0_reads_what_this_version_writes(old_code: Path, tmp_path: Path) -> None:
    """Files of 0.1.0, taken over, changed and written again by this version."""
    config = Store(WRITTEN).load().config
    config = change(config, "farm.set", {"name": "web", "scheduler": "roundrobin"})
    config = change(config, "vip.add", {"address": "10.77.0.101/24", "device": "eth1"})
    Store(tmp_path).save(Encoder().encode(config))
    cluster = ClusterFile(WRITTEN).load()
    assert cluster is not None
    ClusterFile(tmp_path).save(replace(cluster, own=replace(cluster.own, priority=60)))
    EpochFile(tmp_path).save(EpochState(4, 6, True, 200_000_000, 300_000_000))
    checks = HealthChecks(load_down(WRITTEN))
    checks.configure(config, 0)
    CheckRunner(checks, tmp_path, lambda transition: None).save_down()
    VipAddresses(FakeNetwork(), tmp_path).follow(config)
    layouts = layout.load(WRITTEN)
    assert layouts is not None
    layout.store(layouts, tmp_path)
    found = read_by_0_1_0(old_code, tmp_path)
    assert missing(found, read_here(tmp_path)) == []
    assert found["farms"]["farms"][0]["scheduler"] == "roundrobin"
    assert found["cluster"]["own"]["priority"] == 60
    assert (found["epoch"]["epoch"], found["epoch"]["maintenance"]) == (4, True)
    assert found["down"] == [3]
    assert ["eth1", "10.77.0.101", 24] in found["addresses"]
    assert found["layout"] == json.loads((WRITTEN / "layout.json").read_text())
