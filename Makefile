# `make help` lists the targets. Every target installs what it needs; none touches the network if all is installed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.NOTPARALLEL:

PYTHON := .venv/bin/python
SOURCES := bpf ctl sync tests bench docs
C_SOURCES := $(wildcard bpf/program/*.[ch] bench/*/*.c)
PROSE := debian vagrant README.md CHANGELOG.md Makefile .ci
PRIVILEGED_TESTS := $(wildcard tests/bpf tests/model tests/net)
SEEDS ?= 2000
MINUTES ?= 10
STEPS ?= 1000000
JOBS ?= 1

.PHONY: help
help: ## List the targets
	@sed -nE 's/^([a-z0-9.-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do printf '  %-22s %s\n' "$$name" "$$text"; done

.PHONY: setup
setup: ## Install Debian packages, .venv with xlbd and xlbctl, the bpffs mount (root or sudo)
	@.ci/setup

.PHONY: demo
demo: setup ## Form a pair, pull its cables and stop its daemons under real traffic, show what clients lose (root)
	@$(PYTHON) -m tests.demo

.PHONY: test
test: check sim test-privileged ## Everything: check, simulation, packets through the kernel, real traffic (root, under 20 min)

.PHONY: test-privileged
test-privileged: setup # without `check`; most of it waits, so that several tests at a time share the processors
	$(PYTHON) -m pytest -n 3 --dist loadscope --no-loadscope-reorder $(PRIVILEGED_TESTS)

.PHONY: test-slow
test-slow: setup ## Pair creation and demo with a quarter of the processors (root, cgroups)
	$(PYTHON) -m tests.slow 0.25 $(PYTHON) -m pytest tests/net/test_cluster_create.py tests/net/test_demo.py || [ $$? = 77 ]

.PHONY: check
check: setup ## Format (Python and C), lint, spelling, types, unit tests (no privileges)
	$(PYTHON) -m ruff format --check $(SOURCES)
	$(PYTHON) -m ruff check $(SOURCES)
	clang-format --dry-run -Werror $(C_SOURCES)
	$(PYTHON) -m codespell_lib $(SOURCES) $(PROSE)
	$(PYTHON) -m mypy
	$(PYTHON) -m pytest -n auto tests/unit

.PHONY: sim
sim: setup ## Simulated histories of the pair: make sim SEEDS=100000
ifneq ($(wildcard tests/sim),)
	XLB_SIM_SEEDS=$(SEEDS) $(PYTHON) -m pytest tests/sim
endif

.PHONY: format
format: setup ## Format the sources (Python and C), fix what ruff can fix
	clang-format -i $(C_SOURCES)
	$(PYTHON) -m ruff format $(SOURCES)
	$(PYTHON) -m ruff check --fix $(SOURCES)

.PHONY: docs
docs: setup ## Rewrite the generated tables in docs
	$(PYTHON) -m docs.make_tables

.PHONY: program.c
program.c: setup ## Write the flattened XDP program and compile_commands.json, for clangd, ctags and readers
	$(PYTHON) -m bpf.loading.editor

.PHONY: soak
soak: setup ## Random faults on a pair with 1,000 held connections: make soak MINUTES=60 (root)
	@$(PYTHON) -m tests.soak --minutes $(MINUTES)

.PHONY: fuzz
fuzz: setup ## Compare program and model over random histories: make fuzz STEPS=5000000 [SEED=1] [JOBS=2] (root)
	@$(PYTHON) -m tests.model.fuzz --steps $(STEPS) --jobs $(JOBS) $(if $(SEED),--seed $(SEED))

.PHONY: bench
bench: setup ## Measure xlb and its peers, write bench/RESULTS.md: make bench [QUICK=1] [ONLY=packet,wire] (root)
	@$(PYTHON) -m bench $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

.PHONY: deb
deb: ## Build the Debian package into dist/
	@.ci/setup deb
	@debian/build dist

.PHONY: deb-test
deb-test: deb ## Install the package into a bare Debian 12 root, run it and the unit tests on Debian's module versions, purge it
	@.ci/setup root
	@lintian --fail-on error,warning --allow-root dist/*.deb
	@tests/bare/deb.sh dist

.PHONY: bare-test
bare-test: ## Prove the README's two commands in a freshly bootstrapped Debian 12 root: make bare-test TARGETS="demo test"
	@.ci/setup root
	@tests/bare/run.sh $(TARGETS)

.PHONY: vagrant-box
vagrant-box: deb ## Build the Vagrant box from Debian's packages (kept until its recipe changes)
	@.ci/setup vm
	@install -D -m 644 dist/xlb_*.deb vagrant/work/xlb.deb
	@vagrant/build-box "$$PWD/vagrant/work/xlb.deb"

.PHONY: vagrant-up
vagrant-up: vagrant-box ## Start two virtual machines with the package installed (XLB_RIG=qemu: without Vagrant)
	@vagrant/rig up

.PHONY: vagrant-test
vagrant-test: setup vagrant-up ## Test the package in the two virtual machines, then take them down (KEEP=1: leave them)
	@trap '[ -n "$(KEEP)" ] || vagrant/rig down' EXIT; vagrant/rig run env -C "$$PWD" $(PYTHON) -m pytest tests/vm -s

.PHONY: vagrant-ssh
vagrant-ssh: ## Log in: make vagrant-ssh NODE=lb1
	@vagrant/rig ssh $(or $(NODE),lb1)

.PHONY: vagrant-down
vagrant-down: ## Stop the virtual machines and their network
	@vagrant/rig down

.PHONY: clean
clean: ## Remove what build and tests left in the checkout
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info program.c compile_commands.json
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
