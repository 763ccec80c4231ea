"""Metrics: well-formed in both formats, complete, few per backend, and what refers to them names what exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as read_text

from ctl.events.catalogue import LEASE_DISCARDED, ROLE_CHANGED, TAKEOVER_DONE
from ctl.events.tally import Histogram, Tally
from ctl.metrics import families
from tests.fakes.cli import run
from tests.fakes.daemon import FakeServers, RunningDaemon, running_daemon
from tests.fakes.pair import in_step, paired_sites
from tests.tree import TREE
from tests.wait import wait_until

DASHBOARD, ALERTS = TREE / "docs/grafana-dashboard.json", TREE / "docs/alerts.yml"
NAME = re.compile(r"\bxlb_[a-z0-9_]+\b")


def promtool(*arguments: str, given: str = "") -> tuple[int, str]:
    if shutil.which("promtool") is None:
        pytest.fail("promtool is missing: make setup installs it")
    done = subprocess.run(["promtool", *arguments], input=given, text=True, capture_output=True, cwd=TREE, timeout=60)
    return done.returncode, done.stdout + done.stderr


def values(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path, servers=FakeServers("10.88.0.12")) as running:
        running.call("vip.add", address="10.77.0.100/24", device="eth0")
        running.call("vip.add", address="2001:db8::100/64", device="eth0")
        health = {"kind": "tcp", "interval_ms": 1000}
        running.call("farm.add", name="we-b.1_x", vip="10.77.0.100", port=80, health=health)
        running.call("backend.add", farm="we-b.1_x", address="10.88.0.11", port=80)
        running.call("backend.add", farm="we-b.1_x", address="10.88.0.12", port=80)
        running.call("farm.add", name="six", vip="2001:db8::100", port=80, health={"kind": "none"})
        running.call("backend.add", farm="six", address="2001:db8:1::1", port=80)
        wait_until(lambda: running.call("farm.show", name="we-b.1_x")["backends"][1]["state"] == "down", "a failed check")
        yield running


def test_both_formats_are_well_formed(daemon: RunningDaemon) -> None:
    code, text, error = run("--config", str(daemon.config), "metrics")
    assert (code, error) == (0, "") and text.endswith("# EOF\n")
    found = values(text)
    (role,) = [family for family in text_string_to_metric_families(text) if family.name == "xlb_role"]
    assert role.type == "stateset" and found["xlb_role", (("xlb_role", "single"),)] == 1
    assert sum(value for (name, _), value in found.items() if name == "xlb_role") == 1
    code, plain, _ = run("--config", str(daemon.config), "metrics", "--format", "text")
    assert code == 0 and promtool("check", "metrics", given=plain) == (0, ""), "silent"
    assert len([sample for family in read_text(plain) for sample in family.samples]) > 100
    code, document, _ = run("--config", str(daemon.config), "-o", "json", "metrics")
    assert json.loads(document)["type"].startswith("application/openmetrics-text")
    assert run("metrics", "--format", "xml")[0] == 2


def test_farms_and_backends(daemon: RunningDaemon) -> None:
    found = values(families.render(daemon.call("metrics")))

    def of(name: str, backend: str, farm: str = "we-b.1_x") -> float:
        return found[name, (("backend", backend), ("farm", farm))]

    assert (of("xlb_backend_up", "10.88.0.11:80"), of("xlb_backend_up", "10.88.0.12:80")) == (1, 0)
    assert of("xlb_backend_checks_failed_total", "10.88.0.12:80") >= 1 == of("xlb_backend_up", "[2001:db8:1::1]:80", "six")
    assert of("xlb_backend_checks_total", "10.88.0.11:80") >= 1 > of("xlb_backend_checks_failed_total", "10.88.0.11:80")
    farm = (("farm", "we-b.1_x"),)
    assert (found["xlb_farm_backends", farm], found["xlb_farm_backends_up", farm]) == (2, 1)
    daemon.call("backend.drain", farm="we-b.1_x", address="10.88.0.11", port=80)
    found = values(families.render(daemon.call("metrics")))
    assert (of("xlb_backend_draining", "10.88.0.11:80"), found["xlb_farm_backends_up", farm]) == (1, 0)
    per_backend = Counter(labels for _, labels in found if any(name == "backend" for name, _ in labels))
    assert max(per_backend.values()) <= 12


def test_a_node_without_farms(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as running:
        found = values(families.render(running.call("metrics")))
    assert found["xlb_paired", ()] == 0 and not any(name.startswith("xlb_farm_") for name, _ in found)


def test_a_pair_and_the_counts_of_a_short_flip(tmp_path: Path) -> None:
    with paired_sites(tmp_path, vip="10.77.0.100/24") as (one, two):
        before = values(families.render(one.call("metrics")))
        one.call("cluster.switchover")
        in_step(two, one)
        two.call("cluster.switchover")
        in_step(one, two)
        wait_until(lambda: bool(one.status["sync"]["protected"] == 1), "the peer's acknowledgement")
        after = values(families.render(one.call("metrics")))
    assert before["xlb_role", (("xlb_role", "active"),)] == after["xlb_role", (("xlb_role", "active"),)] == 1
    assert after["xlb_role_changes_total", ()] - before["xlb_role_changes_total", ()] == 2, "although no scrape saw it"
    assert after["xlb_takeover_seconds_count", ()] - before["xlb_takeover_seconds_count", ()] == 1
    assert after["xlb_heartbeat_lateness_seconds_count", ()] > 0 and after["xlb_peer_up", ()] == 1
    assert after["xlb_config_generation", ()] == after["xlb_peer_config_generation", ()]
    assert after["xlb_sync_protected_ratio", ()] == 1


def test_counts_of_events() -> None:
    tally = Tally()
    for role, cause in (("backup", ""), ("active", "peer_silent"), ("active", ""), ("backup", "lease_expired")):
        tally.take(ROLE_CHANGED("", role=role, epoch=1, cause=cause, why=""))
    tally.take(LEASE_DISCARDED("", late_ms=3))
    tally.take(TAKEOVER_DONE("", epoch=1, took_ms=1.5, flows_ms=0, lease_ms=0, addresses_ms=0))
    assert (tally.role_changes, tally.leases_lost, tally.extensions_discarded) == (2, 1, 1)
    assert tally.takeovers.view()["counts"][:3] == [0, 0, 1] and tally.events["role.changed"] == 4


def test_a_histogram_counts_up_to_and_with_its_bounds() -> None:
    histogram = Histogram((1, 2))
    for value in (0.5, 1, 1.5, 2, 9):
        histogram.observe(value)
    assert histogram.view() == {"bounds": [1, 2], "counts": [2, 2, 1], "sum": 14}


@cache
def known_names(directory: str) -> frozenset[str]:
    """Every name of a sample, of a pair."""
    with paired_sites(Path(directory), vip="10.77.0.100/24") as (one, _):
        one.call("farm.add", name="web", vip="10.77.0.100", port=80)
        one.call("backend.add", farm="web", address="10.88.0.11", port=80)
        one.daemon.node.parts.local.reconciler.counts["xdp"] += 1
        return frozenset(name for name, _ in values(families.render(one.call("metrics"))))


def used(document: Any) -> Iterator[str]:
    """Names of metrics in the queries of a dashboard."""
    for panel in document["panels"]:
        for target in panel["targets"]:
            without_labels = re.sub(r"\{[^}]*\}|by \([^)]*\)|on \([^)]*\)", "", target["expr"])
            yield from NAME.findall(without_labels)


def test_dashboard_alerts_and_documents_name_metrics_that_exist(tmp_path: Path) -> None:
    known = known_names(str(tmp_path))
    dashboard = set(used(json.loads(DASHBOARD.read_text())))
    assert len(dashboard) > 15 and dashboard <= known
    queries = " ".join(re.findall(r"expr: (.*)", ALERTS.read_text()))
    alerts = set(NAME.findall(re.sub(r"\{[^}]*\}", "", queries)))
    assert len(alerts) > 10 and alerts <= known
    documented = set(re.findall(r"^\| `(xlb_\w+)`", (TREE / "docs/METRICS.md").read_text(), re.MULTILINE))
    plain = {re.sub(r"_(bucket|count|sum)$", "", name) for name in known}
    assert documented == plain


def test_alerting_rules() -> None:
    assert promtool("check", "rules", "docs/alerts.yml")[0] == 0
    code, output = promtool("test", "rules", "tests/metrics/alerts.test.yml")
    assert code == 0 and "SUCCESS" in output, output


def test_every_alert_names_a_command_and_is_tested() -> None:
    rules, tests = ALERTS.read_text(), (TREE / "tests/metrics/alerts.test.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert len(alerts) == len(re.findall(r"^ +look: (?:xlbctl|journalctl) ", rules, re.MULTILINE)) == 9
    assert {name for name in alerts if tests.count(f"alertname: {name}") < 2} == set()


def test_the_daemon_does_not_load_the_library() -> None:
    code = "import sys, ctl.daemon, ctl.node.process; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=TREE, timeout=60).returncode == 0
