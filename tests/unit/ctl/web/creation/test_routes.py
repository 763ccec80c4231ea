"""Creating a pair through the API of the real xlb-web, over a fake login."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.pair import two_sites
from tests.fakes.remote import FakeLogin
from tests.fakes.web import WebClient, give_accounts, running_web
from tests.wait import wait_until

PASSWORD = "the root password of the peer"


def asked(client: WebClient, kind: str) -> Any:
    """The view once this is asked."""

    def asks() -> Any:
        view = client.get("cluster/create").result
        assert view["state"] in ("running", "asking"), view
        return view if view["question"] and view["question"]["kind"] == kind else None

    return wait_until(asks, f"the question {kind}")


def test_an_operator_creates_a_pair_and_a_viewer_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with two_sites(tmp_path) as (one, two):
        two.call("vip.add", address="10.0.0.200/24", device="eth0")
        give_accounts(one.daemon)
        FakeLogin(two, "SHA256:of-the-fake").install(monkeypatch)
        form = {"local": one.address, "peer": two.address, "password": PASSWORD, "password_repeat": PASSWORD}
        with running_web(one.daemon.config) as web:
            operator, viewer = web.client("olga"), web.client("vera")
            assert operator.get("cluster/create").result is None
            assert viewer.post("cluster/create", form).status == 403
            wrong = operator.post("cluster/create", form | {"password_repeat": "other"})
            assert (wrong.status, wrong.json["error"]["key"]) == (422, "password_repeat")
            elsewhere = operator.post("cluster/create", form | {"local": "10.1.2.3"})
            assert (elsewhere.status, elsewhere.json["error"]["key"]) == (422, "local")
            answer = {"question": "none", "accept": True}
            assert operator.post("cluster/create/answer", answer).status == 404
            started = operator.post("cluster/create", form)
            assert started.status == 202 and started.json["result"]["state"] == "running"
            assert operator.post("cluster/create", form).status == 409
            for kind in ("host_key", "replace"):
                view = asked(viewer, kind)
                answer = {"question": view["question"]["id"], "accept": True}
                assert viewer.post("cluster/create/answer", answer).status == 403
                assert operator.post("cluster/create/answer", answer).status == 200
            done: Any = wait_until(
                lambda: (view := viewer.get("cluster/create").result)["state"] not in ("running", "asking") and view, "the end"
            )
            assert done["state"] == "done", done
            assert PASSWORD not in str(done)
            assert operator.request("DELETE", "cluster/create").result is None
            nodes = viewer.get("cluster").result["nodes"]
            assert [each["status"]["role"] for each in nodes] == ["active", "backup"]
