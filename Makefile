PYTHON ?= python3.11
LOCK ?= requirements/cpu.txt
BIN := .venv/bin

.PHONY: help setup system demo test check lint lock soak bench image screenshots clean
.PHONY: test-pages test-training test-serving test-rest test-engine test-e2e check-serving check-training check-rest

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: .venv/.ready ## Install everything pinned into .venv

.venv/.ready: $(LOCK) requirements/dev.txt pyproject.toml tools/install.py
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed; name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python tools/install.py $(LOCK) requirements/dev.txt
	@touch $@

# Ray Serve, which a single machine does without.
.venv/.cluster: .venv/.ready requirements/cluster.txt
	$(BIN)/python tools/install.py requirements/cluster.txt
	@touch $@

system: ## Install what the tests need from Debian: Chromium, PostgreSQL 15, Prometheus (root)
	tools/system.sh

demo: setup ## Train two brand voices and serve them with the base on http://127.0.0.1:8000
	$(BIN)/python examples/demo.py

lint: setup ## Style, types, who may import whom, and declared dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry polytone deploy
	$(BIN)/deptry bench tests tools examples --ignore DEP002,DEP004

check: setup ## Lint and the fast tests, in about a minute on two cores
	@$(MAKE) --no-print-directory --jobs 3 --output-sync check-serving check-training check-rest lint

test: setup .venv/.cluster ## Lint and the whole suite, real engine and real small model included: what CI runs
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=line test-serving test-pages test-rest lint
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=line test-e2e test-engine test-training

# Parts run beside each other on two cores, since many tests wait: for a database, a browser, a deadline. The engine's
# tests share a trained model with training's.
ONE_CORE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
FAST := not engine and not slow and not soak
ENGINE := tests/serve/engine/test_engine.py
TRAINING := tests/train $(ENGINE)
PAGES := tests/ui
SERVING := tests/serve --ignore=$(ENGINE)
REST := tests $(addprefix --ignore=,tests/train tests/serve $(PAGES) tests/e2e tests/soak)

test-serving: setup
	@$(ONE_CORE) -m "not engine and not soak" $(SERVING)

test-rest: setup
	@$(ONE_CORE) -m "not engine and not soak" $(REST)

test-training: setup
	@$(ONE_CORE) -m "not engine and not soak" $(TRAINING)

test-pages: setup
	@$(ONE_CORE) -m "not soak" $(PAGES)

test-engine: setup
	@$(ONE_CORE) -m "engine and not soak" --durations 5 tests/serve tests/train

test-e2e: setup
	@$(BIN)/python -m pytest -q --durations 5 tests/e2e

check-serving: setup
	@$(ONE_CORE) -m "$(FAST)" $(SERVING)

check-rest: setup
	@$(ONE_CORE) -m "$(FAST)" $(REST)

check-training: setup
	@$(ONE_CORE) -m "$(FAST)" $(TRAINING)

lock: setup ## Write the locks again after a change of pyproject.toml; ARGUMENTS="--upgrade-package NAME" moves a pin
	$(BIN)/python tools/lock.py $(ARGUMENTS)

soak: setup .venv/.cluster ## Slow proofs: faults, floods and memory (10 minutes), then tone, drift and verdicts on the demo's voices
	$(BIN)/python -m pytest -m soak -s tests/soak
	$(BIN)/python -m bench.identity
	$(BIN)/python -m bench.tone
	$(BIN)/python -m bench.rollout
	$(BIN)/python -m bench.drift
	$(BIN)/python -m bench.profiles
	$(BIN)/python -m bench.data
	$(BIN)/python -m bench.memory
	$(BIN)/python -m bench.verdicts

bench: setup ## Speed against stock vLLM, bare vLLM and PEFT on this machine (under 20 minutes)
	$(BIN)/python -m bench.speed

image: setup ## Build the CPU image without a container engine and prove its confinement (root)
	test -d build/wheels || $(BIN)/python tools/image.py wheels requirements/cpu.txt
	$(BIN)/python tools/image.py build
	$(BIN)/python tools/image.py prove

screenshots: setup ## Pictures of every tab of the server on http://127.0.0.1:8000 (needs Chromium)
	$(BIN)/python tools/screenshots.py

clean: ## Remove what make made
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache build *.egg-info
