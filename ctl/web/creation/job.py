"""One creation at a time, in the background: what it does can be read, its questions are answered, it can be cancelled.

Decides the states of a job and how long it waits for an answer. It ends with this process; both nodes are then as they were, or
a pair. The password is in memory until the login, and nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ctl.creation.secret import Secret
from ctl.creation.steps import Question, State, Step
from ctl.errors import Code, InternalError, InvalidInput, XlbError
from ctl.web.creation.form import Form, parse

ANSWER_S = 300.0
CANCEL_SHOWN_S = 1.0
STOP_S = 40.0
KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
RUNNING, ASKING, DONE, FAILED, CANCELLED = "running", "asking", "done", "failed", "cancelled"

log = logging.getLogger(__name__)

View = dict[str, Any]


class Answered(Protocol):
    """What the daemon answered."""

    @property
    def result(self) -> Any: ...


class Client(Protocol):
    """Asks this node's daemon (`ctl.api.async_client.AsyncClient`)."""

    async def call(self, command: str, args: Mapping[str, Any] | None = None, on_behalf: str = "") -> Answered: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """state_dir: has xlb-web's known_hosts, and .ssh with its keys if it has any. remote_command: runs xlbctl on the peer."""

    state_dir: Path
    remote_command: str = "xlbctl"

    @property
    def keys(self) -> tuple[Path, ...]:
        """Private keys to log in with."""
        found = (self.state_dir / ".ssh" / name for name in KEYS)
        return tuple(path for path in found if path.is_file())


class CreationJob:
    """Create and use it on one running loop. changed: called with the view whenever it has changed."""

    def __init__(self, client: Client, settings: Settings, changed: Callable[[View | None], None] = lambda _: None) -> None:
        self._client, self._settings, self._changed = client, settings, changed
        self._job: _Job | None = None
        self._starting = False

    def view(self) -> View | None:
        """The job that runs, or ran last; None: none since this process started, or it was dismissed."""
        return self._job.view() if self._job is not None else None

    async def start(self, body: Mapping[str, Any], user: str) -> View:
        """Begin. user: who asked for it. Raises InvalidInput naming the field at fault, XlbError where none can begin."""
        form = parse(body)
        if self._starting or (self._job is not None and self._job.runs):
            raise XlbError("a pair is being created already; wait for its end, or cancel it", Code.CREATION_RUNS)
        if not form.password and not self._settings.keys:
            where = self._settings.state_dir / ".ssh"
            raise InvalidInput(
                f"a password is needed: xlb-web has no SSH keys of its own ({', '.join(KEYS)} in {where})",
                "password",
                Code.MISSING_ARGUMENT,
            )
        self._starting = True
        try:
            await self._judge(form)
        finally:
            self._starting = False
        self._job = _Job(self._client, self._settings, form, user, lambda: self._changed(self.view()))
        self._changed(self.view())
        return self._job.view()

    def answer(self, body: Mapping[str, Any], user: str) -> View:
        """Answer the question that is asked: {"question": its id, "accept": true or false}. Raises XlbError."""
        question, accept = body.get("question"), body.get("accept")
        if not isinstance(accept, bool):
            raise InvalidInput("expected true or false", "accept")
        if not isinstance(question, str):
            raise InvalidInput("expected the id of the question", "question")
        if unknown := body.keys() - {"question", "accept"}:
            raise InvalidInput("no such setting", min(unknown)[:64], Code.UNKNOWN_ARGUMENT)
        if self._job is None or not self._job.answer(question, accept):
            raise XlbError("this question is not asked, or is answered already", Code.UNKNOWN_QUESTION)
        log.info("creating the pair: %s answered %s", user, "yes" if accept else "no")
        return self._job.view()

    async def cancel(self, user: str) -> View | None:
        """Cancel the job that runs; forget one that has ended. Raises XlbError where the nodes are a pair already."""
        job = self._job
        if job is None or not job.runs:
            self._job = None
            self._changed(None)
            return None
        log.info("creating the pair: %s cancels", user)
        await job.cancel()
        return job.view()

    async def close(self) -> None:
        """This process stops: nothing is left half done."""
        if self._job is not None:
            await self._job.stop()

    async def _judge(self, form: Form) -> None:
        """Raises what the node refuses about the addresses, under the names of the form."""
        try:
            await self._client.call("cluster.preview", {"local": form.local, "peer": form.peer})
        except InvalidInput as error:
            raise InvalidInput(error.detail, error.key.removeprefix("--"), error.code) from None


class _Control:
    """The daemon, asked on behalf of a user."""

    def __init__(self, client: Client, user: str) -> None:
        self._client, self._user = client, user

    async def call(self, command: str, args: Mapping[str, Any] | None = None) -> Any:
        return (await self._client.call(command, args, on_behalf=self._user)).result


@dataclass(slots=True)
class _Asked:
    id: str
    question: Question
    answer: asyncio.Future[bool]

    def view(self) -> View:
        question = self.question
        return {
            "id": self.id,
            "kind": question.kind,
            "text": question.text,
            "fingerprint": question.fingerprint,
            "farms": list(question.farms),
            "vips": list(question.vips),
            "accounts": list(question.accounts),
        }


@dataclass(slots=True)
class _Shown:
    """A step as the page shows it."""

    state: State = State.WAITING
    text: str = ""


@dataclass(slots=True)
class _Job:
    client: Client
    settings: Settings
    form: Form
    user: str
    changed: Callable[[], None]
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: str = RUNNING
    error: XlbError | None = None
    outcome: dict[str, Any] = field(default_factory=dict)
    steps: dict[Step, _Shown] = field(default_factory=lambda: {step: _Shown() for step in Step})
    asked: _Asked | None = None
    task: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        secret = Secret(self.form.password)
        self.form = Form(self.form.local, self.form.peer, "", self.form.ssh_port)
        self.task = asyncio.get_running_loop().create_task(self._run(secret), name="creating a pair")
        self.task.add_done_callback(self._ended)

    @property
    def runs(self) -> bool:
        return self.state in (RUNNING, ASKING)

    def view(self) -> View:
        error = self.error
        return {
            "id": self.id,
            "state": self.state,
            "local": self.form.local,
            "peer_address": self.form.peer,
            "steps": [
                {"name": step, "title": step.label, "state": shown.state, "text": shown.text}
                for step, shown in self.steps.items()
            ],
            "question": None if self.asked is None else self.asked.view(),
            "error": error
            and {"kind": error.kind, "code": str(error.code), "message": error.detail, "key": error.key.removeprefix("--")},
            "checks": self.outcome.get("checks", []),
            "kept": self.outcome.get("kept"),
            "node": self.outcome.get("node", ""),
            "peer": self.outcome.get("peer", ""),
        }

    def answer(self, question: str, accept: bool) -> bool:
        """False: that question is not asked."""
        if self.asked is None or self.asked.id != question or self.asked.answer.done():
            return False
        self.asked.answer.set_result(accept)
        return True

    async def cancel(self) -> None:
        if self.steps[Step.JOIN].state is State.DONE:
            raise XlbError("the nodes are a pair already; xlbctl cluster destroy ends it", Code.PAIR_EXISTS)
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait((self.task,), timeout=CANCEL_SHOWN_S)

    async def stop(self) -> None:
        """To its end: the join token is revoked."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait((self.task,), timeout=STOP_S)

    # --- for the creation ----------------------------------------------------------------------------------------

    def step(self, step: Step, state: State, text: str) -> None:
        shown = self.steps[step]
        shown.state, shown.text = state, text or shown.text
        self.changed()

    def note(self, text: str) -> None:
        log.warning("creating the pair: %s", text)

    async def ask(self, question: Question) -> bool:
        self.asked = _Asked(secrets.token_hex(8), question, asyncio.get_running_loop().create_future())
        self._become(ASKING)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await self.asked.answer
        except TimeoutError:
            raise XlbError(f"no answer within {ANSWER_S / 60:g} minutes; nothing was changed", Code.CANCELLED) from None
        finally:
            self.asked = None
            self._become(RUNNING)

    async def _run(self, secret: Secret) -> None:
        peer = self.form.peer
        log.info("creating a pair with %s, as %s asked", peer, self.user)
        try:
            self.outcome = await self._created(secret)
        except XlbError as error:
            self.error = error
        except Exception as error:  # a bug here must not take the process down
            log.exception("creating a pair failed")
            self.error = InternalError("creating a pair", error)
        finally:
            secret.take()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Also where it was cancelled before it began."""
        peer = self.form.peer
        if task.cancelled():
            self.error = XlbError("cancelled; both nodes are as they were", Code.CANCELLED)
        if self.error is not None:
            log.warning("no pair with %s was created: %s", peer, self.error)
        else:
            log.info("%s and %s are a pair, as %s asked", self.outcome["node"], self.outcome["peer"], self.user)
        cancelled = self.error is not None and self.error.code == Code.CANCELLED
        self._become(DONE if self.error is None else CANCELLED if cancelled else FAILED)

    async def _created(self, secret: Secret) -> dict[str, Any]:
        flow = await asyncio.to_thread(_flow)
        settings, form = self.settings, self.form
        files = flow.ssh.Files(settings.state_dir / "known_hosts", settings.keys)
        wanted = flow.Wanted(form.local, form.peer, files, form.ssh_port, settings.remote_command)
        created: dict[str, Any] = await flow.Creation(wanted, _Control(self.client, self.user), self).run(secret)
        return created

    def _become(self, state: str) -> None:
        self.state = state
        self.changed()


def _flow() -> Any:
    """Importing SSH takes half a second, and 10 MB that nothing else needs."""
    from ctl.creation import flow

    return flow
