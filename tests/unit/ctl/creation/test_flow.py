"""A creation over a fake login between two whole daemons: its steps, its questions, and a cancel at each of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ctl.creation import ssh
from ctl.creation.flow import Creation, Wanted
from ctl.creation.secret import Secret
from ctl.creation.steps import Kind, Question, State, Step
from ctl.errors import Code, XlbError
from ctl.state.cluster_file import ClusterFile
from ctl.version import package_version
from tests.fakes.pair import Site, two_sites
from tests.fakes.remote import FakeLogin
from tests.refusals import invalid, refused

FINGERPRINT = "SHA256:of-the-fake"


class SiteControl:
    """A daemon of this process as a control client."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.asked: list[str] = []

    async def call(self, command: str, args: Mapping[str, Any] | None = None) -> Any:
        self.asked.append(command)
        return await asyncio.to_thread(lambda: self._site.call(command, **(args or {})))


class Witness:
    """Agrees to everything but `refuses`, and remembers what it was shown. at: called at a step or a question."""

    def __init__(self) -> None:
        self.steps: list[tuple[Step, State]] = []
        self.texts: list[str] = []
        self.notes: list[str] = []
        self.questions: list[Question] = []
        self.refuses: Kind | None = None
        self.at: Callable[[object], None] = lambda _: None

    def step(self, step: Step, state: State, text: str) -> None:
        self.steps.append((step, state))
        self.texts.append(text)
        if state is State.RUNNING:
            self.at(step)

    def note(self, text: str) -> None:
        self.notes.append(text)

    async def ask(self, question: Question) -> bool:
        self.questions.append(question)
        self.at(question.kind)
        await asyncio.sleep(0)  # where a cancelled task notices it
        return question.kind is not self.refuses

    def states(self) -> dict[Step, State]:
        return dict(self.steps)


class Scene:
    """Two single nodes, the second with a farm of its own, and a login to it."""

    def __init__(self, one: Site, two: Site, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.one, self.two = one, two
        self.control, self.witness = SiteControl(one), Witness()
        self.login = FakeLogin(two, FINGERPRINT)
        self.login.install(monkeypatch)
        self.wanted = Wanted(one.address, two.address, ssh.Files(files / "known_hosts", ()))

    async def run(self, password: str = "secret") -> dict[str, Any]:
        secret = Secret(password)
        try:
            return await Creation(self.wanted, self.control, self.witness).run(secret)
        finally:
            assert not self.login.passwords or secret.take() == "", "it was dropped at the login"

    def created(self) -> dict[str, Any]:
        return asyncio.run(self.run())

    def cancelled_at(self, place: object) -> dict[str, Any] | None:
        """None: it ended as cancelled."""

        async def run() -> dict[str, Any] | None:
            task = asyncio.ensure_future(self.run())
            self.witness.at = lambda here: (here is place and task.cancel() and None) or None
            try:
                return await task
            except asyncio.CancelledError:
                return None

        return asyncio.run(run())

    def unchanged(self) -> None:
        for site in (self.one, self.two):
            assert site.status["role"] == "single" and ClusterFile(site.directory / "state").load() is None
        assert [each["name"] for each in self.two.call("farm.list")] == ["old"]
        assert self.one.daemon.node.parts.pairing._listener is None, "no token is outstanding"


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with two_sites(tmp_path) as (one, two):
        two.call("vip.add", address="10.0.0.200/24", device="eth0")
        two.call("farm.add", name="old", vip="10.0.0.200", port=80)
        yield Scene(one, two, tmp_path, monkeypatch)


def test_the_steps_in_their_order_and_what_is_asked(scene: Scene) -> None:
    outcome = scene.created()
    assert (outcome["node"], outcome["peer"]) == ("lb1", "lb2") and outcome["kept"] and outcome["checks"]
    assert (scene.one.status["role"], scene.two.status["role"]) == ("active", "backup")
    running = list(dict.fromkeys(step for step, state in scene.witness.steps if state is State.RUNNING))
    assert running == list(Step) and set(scene.witness.states().values()) == {State.DONE}
    key, replace = scene.witness.questions
    assert (key.kind, key.fingerprint) == (Kind.HOST_KEY, FINGERPRINT) and FINGERPRINT in key.text
    assert (replace.kind, list(replace.farms), list(replace.vips)) == (Kind.REPLACE, ["old"], ["10.0.0.200"])
    assert f"lb2 has xlb {package_version()}; 1 farm and 1 VIP of lb2 will be removed" in "\n".join(scene.witness.texts)
    assert scene.login.passwords == ["secret"] and "secret" not in "".join(scene.witness.texts + scene.witness.notes)


@pytest.mark.parametrize(("kind", "code"), [(Kind.HOST_KEY, Code.HOST_KEY_UNKNOWN), (Kind.REPLACE, Code.CANCELLED)])
def test_a_question_that_is_answered_with_no_changes_nothing(scene: Scene, kind: Kind, code: Code) -> None:
    scene.witness.refuses = kind
    with refused(code):
        scene.created()
    scene.unchanged()
    failed = Step.HOST_KEY if kind is Kind.HOST_KEY else Step.PREVIEW
    assert scene.witness.states()[failed] is State.FAILED and Step.KEYS not in scene.witness.states()


@pytest.mark.parametrize("place", [Step.SSH, Kind.HOST_KEY, Step.PREVIEW, Kind.REPLACE, Step.KEYS, Step.JOIN])
def test_a_cancel_leaves_both_nodes_as_they_were(scene: Scene, place: object) -> None:
    """A join that has begun hears of the void token."""
    scene.login.before_join = lambda: scene.login.wait_for(lambda: "cluster.cancel" in scene.control.asked)
    assert scene.cancelled_at(place) is None
    scene.unchanged()
    assert ("cluster.cancel" in scene.control.asked) == (place in (Step.KEYS, Step.JOIN))


def test_a_cancel_after_the_peer_has_joined_is_too_late(scene: Scene) -> None:
    joined = threading.Event()

    def let_the_cancel_come_first() -> None:
        joined.set()
        scene.login.wait_for(lambda: "cluster.cancel" in scene.control.asked)

    async def run() -> dict[str, Any]:
        task = asyncio.ensure_future(scene.run())
        await asyncio.to_thread(joined.wait, 20)
        task.cancel()
        return await task

    scene.login.after_join = let_the_cancel_come_first
    assert asyncio.run(run())["peer"] == "lb2"
    assert any("too late to cancel" in note for note in scene.witness.notes)
    assert (scene.one.status["role"], scene.two.status["role"]) == ("active", "backup")


def test_a_login_that_is_lost_after_the_join_ends_with_the_pair(scene: Scene) -> None:
    def lose() -> None:
        raise XlbError("the connection was lost", Code.SSH_FAILED)

    scene.login.after_join = lose
    assert scene.created()["kept"] is None
    assert (scene.one.status["role"], scene.two.status["role"]) == ("active", "backup")


def test_a_login_that_is_lost_before_the_join_revokes_the_token(scene: Scene) -> None:
    def lose() -> None:
        raise XlbError("the connection was lost", Code.SSH_FAILED)

    scene.login.before_join = lose
    with refused(Code.SSH_FAILED):
        scene.created()
    scene.unchanged()


def test_what_the_daemon_refuses_is_refused_before_anybody_logs_in(scene: Scene) -> None:
    for local, peer, key in (
        ("10.1.2.3", scene.two.address, "--local"),
        (scene.one.address, scene.one.address, "--peer"),
        (scene.one.address, "fd00::1", "--peer"),
        (scene.one.address, "nowhere", "--peer"),
    ):
        scene.wanted = Wanted(local, peer, scene.wanted.files)
        with invalid(Code.INVALID_VALUE, key):
            scene.created()
    assert not scene.witness.steps and not scene.login.passwords


def test_a_peer_that_does_not_fit_is_refused(scene: Scene) -> None:
    scene.login.version = "9.9"
    with refused(Code.NODES_DIFFER):
        scene.created()
    scene.login.version = None
    with refused(Code.DAEMON_NOT_RUNNING):
        scene.created()
    scene.unchanged()
