"""The creation job of the page, over a fake login between two whole daemons."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ctl.creation.ssh import Files
from ctl.errors import Code, XlbError
from ctl.state.cluster_file import ClusterFile
from ctl.web.creation import job as job_module
from ctl.web.creation.form import parse
from ctl.web.creation.job import CreationJob, Settings
from tests.fakes.pair import Site, two_sites
from tests.fakes.remote import FakeLogin
from tests.refusals import invalid, refused

PASSWORD = "correct horse battery staple"
FINGERPRINT = "SHA256:of-the-fake"
JOIN = 4
FORM = {"local": "10.99.0.1", "peer": "10.99.0.2", "password": PASSWORD, "password_repeat": PASSWORD}


@dataclass(frozen=True)
class Result:
    result: Any


class SiteClient:
    """A daemon of this process as the client of xlb-web."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.users: set[str] = set()

    async def call(self, command: str, args: Mapping[str, Any] | None = None, on_behalf: str = "") -> Result:
        self.users.add(on_behalf)
        return Result(await asyncio.to_thread(lambda: self._site.call(command, **(args or {}))))


class Scene:
    """Two single nodes, the second with a farm of its own, a login to it, and xlb-web's part on the first."""

    def __init__(self, one: Site, two: Site, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.one, self.two, self.directory = one, two, directory
        self.login = FakeLogin(two, FINGERPRINT)
        self.login.install(monkeypatch)
        self.login.right_password = PASSWORD
        self.client = SiteClient(one)
        self.form = FORM | {"local": one.address, "peer": two.address}

    def run(self, story: Callable[[Page], Awaitable[None]]) -> list[dict[str, Any] | None]:
        """Returns every view that was announced."""

        async def play() -> list[dict[str, Any] | None]:
            page = Page(self)
            async with asyncio.timeout(40):
                await story(page)
                await page.job.close()
            return page.views

        return asyncio.run(play())

    def unchanged(self) -> None:
        for site in (self.one, self.two):
            assert site.status["role"] == "single" and ClusterFile(site.directory / "state").load() is None
        assert [each["name"] for each in self.two.call("farm.list")] == ["old"]
        assert self.one.daemon.node.parts.pairing._listener is None, "no token is outstanding"


class Page:
    """Sees every view, and acts on it."""

    def __init__(self, scene: Scene) -> None:
        self.views: list[dict[str, Any] | None] = []
        self._news = asyncio.Event()
        self.job = CreationJob(scene.client, Settings(scene.directory), self._changed)

    def _changed(self, view: dict[str, Any] | None) -> None:
        self.views.append(view)
        self._news.set()

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first view from now on of which it is true; fails if the job ends before."""
        while not ((view := self.job.view()) and condition(view)):
            assert view is None or view["state"] in ("running", "asking"), view
            self._news.clear()
            await self._news.wait()
        return view

    async def ended(self) -> dict[str, Any]:
        return await self.until(lambda view: view["state"] not in ("running", "asking"))

    async def answer(self, kind: str, accept: bool = True) -> str:
        """Answer the next question, which is of this kind. Returns its id."""
        view = await self.until(lambda view: bool(view["question"]))
        assert view["question"]["kind"] == kind and view["state"] == "asking", view
        self.job.answer({"question": view["question"]["id"], "accept": accept}, "alice")
        await self.until(lambda view: view["question"] is None)
        return str(view["question"]["id"])

    async def agree(self) -> None:
        await self.answer("host_key")
        await self.answer("replace")

    async def at_join(self, *states: str) -> dict[str, Any]:
        return await self.until(lambda view: view["steps"][JOIN]["state"] in states)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with two_sites(tmp_path) as (one, two):
        two.call("vip.add", address="10.0.0.200/24", device="eth0")
        two.call("farm.add", name="old", vip="10.0.0.200", port=80)
        yield Scene(one, two, tmp_path, monkeypatch)


def test_the_page_creates_a_pair(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    async def story(page: Page) -> None:
        job = page.job
        assert job.view() is None
        view = await job.start(scene.form, "alice")
        assert view["state"] == "running" and {step["state"] for step in view["steps"]} <= {"waiting", "running"}
        with refused(Code.CREATION_RUNS):
            await job.start(scene.form, "bob")
        first = await page.until(lambda view: bool(view["question"]))
        assert first["question"]["fingerprint"] == FINGERPRINT
        with refused(Code.UNKNOWN_QUESTION):
            job.answer({"question": "another", "accept": True}, "alice")
        await page.agree()
        done = await page.ended()
        assert done["state"] == "done" and {step["state"] for step in done["steps"]} == {"done"} and done["error"] is None
        assert (done["node"], done["peer"]) == ("lb1", "lb2") and done["kept"] and done["checks"]
        with refused(Code.UNKNOWN_QUESTION):
            job.answer({"question": first["question"]["id"], "accept": True}, "alice")
        assert await job.cancel("alice") is None and job.view() is None, "what has ended is dismissed"

    caplog.set_level(logging.DEBUG)
    views = scene.run(story)
    assert scene.login.passwords == [PASSWORD]
    replace = next(view["question"] for view in views if view and view["question"] and view["question"]["kind"] == "replace")
    assert (replace["farms"], replace["vips"]) == (["old"], ["10.0.0.200"]) and not replace["fingerprint"]
    assert PASSWORD not in f"{views}{caplog.text}"
    assert scene.client.users == {"", "alice"}
    assert (scene.one.status["role"], scene.two.status["role"]) == ("active", "backup")
    assert "as alice asked" in caplog.text


@pytest.mark.parametrize(
    ("kind", "state", "code"),
    [("host_key", "failed", Code.HOST_KEY_UNKNOWN), ("replace", "cancelled", Code.CANCELLED)],
)
def test_no_is_an_answer(scene: Scene, kind: str, state: str, code: Code) -> None:
    async def story(page: Page) -> None:
        await page.job.start(scene.form, "alice")
        if kind == "replace":
            await page.answer("host_key")
        await page.answer(kind, accept=False)
        ended = await page.ended()
        assert (ended["state"], ended["error"]["code"]) == (state, code)

    scene.run(story)
    scene.unchanged()


def test_an_answer_that_does_not_come_cancels(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(page: Page) -> None:
        await page.job.start(scene.form, "alice")
        ended = await page.ended()
        assert (ended["state"], ended["question"]) == ("cancelled", None) and "no answer within" in ended["error"]["message"]

    monkeypatch.setattr(job_module, "ANSWER_S", 0.1)
    scene.run(story)
    scene.unchanged()


def test_a_cancel_before_it_has_begun(scene: Scene) -> None:
    async def story(page: Page) -> None:
        await page.job.start(scene.form, "bob")
        await page.job.cancel("bob")
        ended = await page.ended()
        assert (ended["state"], ended["error"]["code"]) == ("cancelled", Code.CANCELLED)

    scene.run(story)
    scene.unchanged()


def test_a_wrong_password_fails_and_the_next_try_is_another_job(scene: Scene) -> None:
    async def story(page: Page) -> None:
        first = await page.job.start(scene.form | {"password": "guess", "password_repeat": "guess"}, "alice")
        await page.answer("host_key")
        failed = await page.ended()
        assert (failed["state"], failed["error"]["code"]) == ("failed", Code.SSH_LOGIN_REFUSED)
        assert [step["state"] for step in failed["steps"]] == ["done", "failed", *["waiting"] * 5]
        second = await page.job.start(scene.form, "alice")
        assert second["id"] != first["id"]
        await page.job.cancel("alice")

    scene.run(story)
    scene.unchanged()


def test_a_stop_during_the_join_leaves_both_nodes_as_they_were(scene: Scene) -> None:
    async def story(page: Page) -> None:
        await page.job.start(scene.form, "alice")
        await page.agree()
        await page.at_join("running")

    pairing = scene.one.daemon.node.parts.pairing
    scene.login.before_join = lambda: scene.login.wait_for(lambda: pairing._listener is None)
    scene.run(story)
    scene.unchanged()


def test_a_cancel_after_the_join_is_refused(scene: Scene) -> None:
    async def story(page: Page) -> None:
        await page.job.start(scene.form, "alice")
        await page.agree()
        if (await page.at_join("done"))["state"] == "running":
            with refused(Code.PAIR_EXISTS):
                await page.job.cancel("alice")
        assert (await page.ended())["state"] == "done"

    scene.run(story)


@pytest.mark.parametrize(
    ("change", "key", "code"),
    [
        ({"password_repeat": "other"}, "password_repeat", Code.INVALID_VALUE),
        ({"password_repeat": None}, "password_repeat", Code.MISSING_ARGUMENT),
        ({"password": None}, "password", Code.MISSING_ARGUMENT),
        ({"password": 17, "password_repeat": 17}, "password", Code.INVALID_VALUE),
        ({"password": "ä" * 600, "password_repeat": "ä" * 600}, "password", Code.INVALID_VALUE),
        ({"peer": "nowhere"}, "peer", Code.INVALID_VALUE),
        ({"local": None}, "local", Code.MISSING_ARGUMENT),
        ({"local": ["10.99.0.1"]}, "local", Code.INVALID_VALUE),
        ({"ssh_port": 0}, "ssh_port", Code.INVALID_VALUE),
        ({"ssh_port": "22"}, "ssh_port", Code.INVALID_VALUE),
        ({"remote_command": "rm -rf /"}, "remote_command", Code.UNKNOWN_ARGUMENT),
        ({"accept_host_key": "SHA256:x"}, "accept_host_key", Code.UNKNOWN_ARGUMENT),
    ],
)
def test_the_form_names_the_field_at_fault(change: dict[str, Any], key: str, code: Code) -> None:
    with invalid(code, key) as caught:
        parse({name: value for name, value in (FORM | change).items() if value is not None})
    assert PASSWORD not in str(caught.value) and "17" not in str(caught.value)


def test_what_the_node_refuses_of_the_addresses_is_named_at_once(scene: Scene) -> None:
    async def story(page: Page) -> None:
        for change, key in (
            ({"local": "10.1.2.3"}, "local"),
            ({"peer": scene.one.address}, "peer"),
            ({"peer": "fd00::1"}, "peer"),
        ):
            with invalid(Code.INVALID_VALUE, key):
                await page.job.start(scene.form | change, "alice")
        assert page.job.view() is None

    scene.run(story)
    assert not scene.login.passwords


def test_without_a_password_xlb_web_needs_keys_of_its_own(scene: Scene) -> None:
    async def story(page: Page) -> None:
        job, form = page.job, scene.form | {"password": "", "password_repeat": ""}
        with invalid(Code.MISSING_ARGUMENT, "password"):
            await job.start(form, "alice")
        (scene.directory / ".ssh").mkdir()
        (scene.directory / ".ssh" / "id_ed25519").write_text("")
        await job.start(form, "alice")
        await page.until(lambda view: bool(view["question"]))
        await job.cancel("alice")
        ended = await page.ended()
        assert (ended["state"], ended["question"]) == ("cancelled", None)

    scene.run(story)
    assert Settings(scene.directory).keys == (scene.directory / ".ssh" / "id_ed25519",)


def test_a_daemon_that_is_away_is_an_error_of_the_start(scene: Scene) -> None:
    class Away:
        async def call(self, command: str, args: Mapping[str, Any] | None = None, on_behalf: str = "") -> Result:
            raise XlbError("xlbd is not running", Code.DAEMON_NOT_RUNNING)

    async def play() -> None:
        job = CreationJob(Away(), Settings(scene.directory))
        for _ in range(2):  # the failed start takes no place
            with refused(Code.DAEMON_NOT_RUNNING):
                await job.start(scene.form, "alice")
        assert Files(scene.directory / "known_hosts").keys is None

    asyncio.run(play())
