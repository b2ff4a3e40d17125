# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3.11
LOCK ?= requirements/cpu.txt
BIN := .venv/bin

.PHONY: setup demo test test-pages test-training test-serving test-engine test-e2e lint check check-serving check-training soak bench image screenshots clean

setup: .venv/.ready

.venv/.ready: $(LOCK) requirements/dev.txt pyproject.toml tools/install.py
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed; name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python tools/install.py $(LOCK) requirements/dev.txt
	@touch $@

## Write the locks again from what pyproject.toml declares: make lock ARGUMENTS="--upgrade-package NAME"
lock: setup
	$(BIN)/python tools/lock.py $(ARGUMENTS)

# Ray Serve, which a single machine does without.
.venv/.cluster: .venv/.ready requirements/cluster.txt
	$(BIN)/python tools/install.py requirements/cluster.txt
	@touch $@

## Train two brand voices and serve them with the base on http://127.0.0.1:8000
demo: setup
	$(BIN)/python examples/demo.py

## Lint, types and the whole suite, real engine and real small model included; two parts at a time where one core each will do
test: setup .venv/.cluster
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=line test-serving test-pages lint
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=line test-e2e test-engine test-training

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

## What a reviewer would run: lint, types and the fast tests, in about a minute and a half on two cores
check: setup
	@$(MAKE) --no-print-directory --jobs 2 --output-sync check-serving check-training lint

# Parts of about the same length: training's tests wait for its libraries to import, the pages' for a browser.
ONE_CORE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
SERVING := tests/contract tests/serve tests/deploy tests/docs
TRAINING := tests/train
PAGES := tests/ui

test-pages: setup
	@$(ONE_CORE) -m "not soak" $(PAGES)

test-training: setup
	@$(ONE_CORE) -m "not engine and not soak" $(TRAINING)

test-e2e: setup
	@$(BIN)/python -m pytest -q --durations 5 tests/e2e

test-engine: setup
	@$(ONE_CORE) -m "engine and not soak" --durations 5 tests/serve tests/train

test-serving: setup
	@$(ONE_CORE) -m "not engine and not soak" $(SERVING)

check-serving: setup
	@$(ONE_CORE) -m "not engine and not slow and not soak" $(SERVING)

check-training: setup
	@$(ONE_CORE) -m "not engine and not slow and not soak" $(TRAINING)

## Slow proofs: faults, floods and memory on a tiny model (10 minutes), then tone and a rollout on the demo's voices, drift, data, memory and verdicts
soak: setup .venv/.cluster
	$(BIN)/python -m pytest -m soak -s tests/soak
	$(BIN)/python -m bench.identity
	$(BIN)/python -m bench.tone
	$(BIN)/python -m bench.rollout
	$(BIN)/python -m bench.drift
	$(BIN)/python -m bench.profiles
	$(BIN)/python -m bench.data
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.verdicts

## Speed against stock vLLM, bare vLLM and PEFT on this machine, each figure a ratio (under 20 minutes)
bench: setup
	$(BIN)/python -m bench.speed

## The CPU image without a container engine, and proof of what it promises, on the demo's voices (root; Debian's buildah, debootstrap, runc)
image: setup
	test -d build/wheels || $(BIN)/python tools/image.py wheels requirements/cpu.txt
	$(BIN)/python tools/image.py build
	$(BIN)/python tools/image.py prove

## Pictures of every tab of the server on http://127.0.0.1:8000, light and dark, wide and narrow (needs chromium)
screenshots: setup
	$(BIN)/python tools/screenshots.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache build *.egg-info
