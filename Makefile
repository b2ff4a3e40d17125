# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3.11
LOCK ?= requirements/cpu.txt
BIN := .venv/bin

.PHONY: setup demo test check soak bench clean

setup: .venv/.ready

.venv/.ready: $(LOCK) pyproject.toml tools/install.py
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed; name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python tools/install.py $(LOCK)
	@touch $@

## Train two brand voices and serve them with the base on http://127.0.0.1:8000
demo: setup
	$(BIN)/python examples/demo.py

## Lint, types and the whole suite, real engine and real small model included
test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

## What a reviewer would run: lint, types and the fast tests, in about 30 seconds
check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not engine" --ignore tests/soak --ignore tests/test_e2e.py

## Slow proofs: faults, floods and memory on a tiny model (15 minutes), then tone and a rollout on the demo's voices
soak: setup
	$(BIN)/python -m pytest -m soak -s
	$(BIN)/python -m bench.identity
	$(BIN)/python -m bench.tone
	$(BIN)/python -m bench.rollout

## Speed against stock vLLM, bare vLLM and PEFT on this machine, each figure a ratio (under 20 minutes)
bench: setup
	$(BIN)/python -m bench.speed

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info
