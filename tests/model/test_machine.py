"""The program does what the model does, for random histories: packets, changes, lease moves, time, sweeps and takeovers.

hypothesis finds and shrinks histories; `make fuzz` runs many more of the same steps (tests/model/fuzz.py).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.bpf.bed import Bed, why_not
from tests.model import fuzz
from tests.model.generate import Generator
from tests.model.kernel import Kernel
from tests.model.machine import Machine
from tests.model.steps import Step

STEPS = 20_000
LENGTH = 200
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def beds() -> Iterator[list[Bed]]:
    if reason := why_not():
        pytest.skip(reason)
    with fuzz.beds() as opened:
        yield opened


class History(RuleBasedStateMachine):
    """Each rule makes its step from a seed and from what the node knows."""

    kernels: list[Kernel]
    counted: Counter[str]
    steps: int

    def execute(self, step: Step) -> None:
        type(self).steps += 1
        self.machine.execute(step)

    @initialize(build=st.integers(0, len(fuzz.BUILDS) - 1), seed=SEEDS)
    def begin(self, build: int, seed: int) -> None:
        kernel = type(self).kernels[build]
        self.machine = Machine(kernel)
        self.generator = Generator(random.Random(seed), self.machine.state, fuzz.features_of(kernel))
        self.execute(self.generator.configure())

    @rule(seed=SEEDS)
    def packet(self, seed: int) -> None:
        """The usual step, therefore several times."""
        self.generator.rng.seed(seed)
        for _ in range(8):
            self.execute(self.generator.packet())

    @rule(seed=SEEDS)
    def anything(self, seed: int) -> None:
        self.generator.rng.seed(seed)
        self.execute(self.generator.step())

    @rule(seed=SEEDS)
    def wait(self, seed: int) -> None:
        self.generator.rng.seed(seed)
        self.execute(self.generator.wait())

    @rule(seed=SEEDS)
    def configure(self, seed: int) -> None:
        self.generator.rng.seed(seed)
        self.execute(self.generator.configure())

    @rule(seed=SEEDS)
    def lease(self, seed: int) -> None:
        self.generator.rng.seed(seed)
        self.execute(self.generator.lease())

    @rule(seed=SEEDS)
    def sweep(self, seed: int) -> None:
        self.generator.rng.seed(seed)
        self.execute(self.generator.sweep())

    @rule()
    def take_over(self) -> None:
        self.execute(self.generator.take_over())

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        type(self).counted += self.machine.counted
        self.machine.compare_all()
        self.machine.close()


def test_program_and_model_agree(beds: list[Bed]) -> None:
    """20,000 steps in all."""

    def run() -> None:
        History.kernels, History.counted, History.steps = fuzz.open_kernels(beds), Counter(), 0
        few = settings(max_examples=40, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))
        run_state_machine_as_test(History, settings=few)
        fuzz.run(History.kernels, STEPS - History.steps, random.getrandbits(32) if fuzz.INTERACTIVE else 1, History.counted)

    beds[0].inside(run)
    missing = fuzz.never_counted(History.counted)
    assert not missing, f"no step of this run had the outcome {missing}"
