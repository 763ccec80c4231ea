"""xlb-web over TLS against a whole daemon: page, login, routes, what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.daemon import RunningDaemon, running_daemon
from tests.fakes.web import RunningWeb, give_accounts, running_web
from tests.wait import wait_until


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    with running_daemon(tmp_path_factory.mktemp("node")) as running:
        give_accounts(running)
        yield running


@pytest.fixture(scope="module")
def web(daemon: RunningDaemon) -> Iterator[RunningWeb]:
    with running_web(daemon.config) as running:
        yield running


def test_the_page_is_served_without_a_login(web: RunningWeb) -> None:
    page = web.client().get("/")
    assert page.status == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert web.client().get("/", If_None_Match=page.headers["etag"]).status == 304


def test_a_login_opens_the_api(web: RunningWeb) -> None:
    client = web.client()
    assert client.get("farms").status == 401
    answer = client.login()
    assert answer.result["role"] == "operator"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("__Host-xlb=") and {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert client.get("farms").result == []
    assert client.get("session").result["name"] == "olga"
    assert client.request("DELETE", "session").status == 200
    assert client.get("farms").status == 401


def test_everything_that_can_be_read_is_read(web: RunningWeb) -> None:
    client = web.client("vera")
    for path in ("status", "stats", "doctor", "vips", "prefixes", "history", "connections", "cluster/status", "version"):
        assert client.get(path).status == 200, path
    assert client.get("connections?limit=5").result == {"connections": [], "total": 0, "limit": 5}


def test_rates_series_and_metrics(web: RunningWeb, daemon: RunningDaemon) -> None:
    client = web.client("olga")
    assert client.post("vips", {"address": "10.77.0.90/24", "device": "eth0"}).status == 200
    assert client.post("farms", {"name": "rated", "vip": "10.77.0.90", "port": 80}).status == 200
    assert client.post("farms/rated/backends", {"address": "10.77.0.11", "port": 80}).status == 200
    wait_until(lambda: client.get("rates?farm=rated").status == 200, "the sampler sees the farm")
    rates = client.get("rates?farm=rated").result
    assert rates["farms"]["rated"]["connections"] == 0
    assert list(rates["backends"]) == ["10.77.0.11:80"]
    assert set(rates["node"]) == {"packets", "bytes", "drops", "new_connections", "connections"}
    series = client.get("series").result
    assert series["step_s"] == 10 and len(series["series"]["packets"]) == 360
    text = client.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4") and b"xlb_up_seconds" in text.body
    openmetrics = client.get("metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics.body.endswith(b"# EOF\n")
    assert web.client().get("/metrics").status == 401


def test_a_configuration_is_exported_and_another_balancer_imported(web: RunningWeb) -> None:
    client = web.client("olga")
    document = client.get("config").result
    toml = client.get("config?format=toml")
    assert toml.headers["content-type"] == "application/toml; charset=utf-8"
    diff = client.post("config/diff", {"toml": toml.body.decode()})
    assert diff.result == [] and client.post("config/diff", {"document": document}).result == []
    rules = "-A -t 10.77.0.80:80 -s rr\n-a -t 10.77.0.80:80 -r 10.0.0.1:80 -m -w 1\n"
    made = client.post("import/ipvsadm?device=eth0", rules.encode(), Content_Type="text/plain").result
    assert made["document"]["farm"][0]["vip"] == "10.77.0.80" and made["notes"]
    assert client.post("import/f5", b"x", Content_Type="text/plain").status == 404


def test_events_are_streamed(web: RunningWeb, daemon: RunningDaemon) -> None:
    import http.client

    from tests.fakes.web import insecure

    client = web.client("vera")
    connection = http.client.HTTPSConnection("127.0.0.1", web.port, timeout=20, context=insecure())
    connection.request("GET", "/api/v1/events", headers=client.headers)
    answer = connection.getresponse()
    assert answer.getheader("content-type") == "text/event-stream; charset=utf-8"
    assert answer.readline() == b"retry: 2000\n"
    daemon.call("vip.add", address="10.77.0.100/24", device="eth0")
    lines = []
    while b"event: event\n" not in lines:
        lines.append(answer.readline())
    assert b'"config.changed"' in answer.readline()
    connection.close()


def test_a_bad_directory_is_named(tmp_path: Path) -> None:
    from ctl.errors import XlbError
    from tests.fakes.daemon import write_node_file

    write_node_file(tmp_path)
    (tmp_path / "web").write_text("")
    with pytest.raises(XlbError), running_web(tmp_path / "node.toml"):
        pass
