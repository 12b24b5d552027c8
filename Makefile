# `make quickstart` and `make test` need Python 3.11+ and nothing else: they make .venv and install into it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test check lint type bench-step bench-learner bench-rollout clean

quickstart: .venv/installed
	$(BIN)/rlft train configs/quickstart.yaml --restart

test: .venv/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --cov --cov-report=term

check: lint type test

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: .venv/installed
	$(BIN)/mypy

bench-step: .venv/installed
	$(BIN)/python -m benchmarks.step

bench-learner: .venv/installed
	$(BIN)/python -m benchmarks.learner

bench-rollout: .venv/installed
	$(BIN)/python -m benchmarks.rollout $(if $(wildcard .venv-vllm/bin/python),--vllm .venv-vllm/bin/python)

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
