# Two commands on a fresh machine with Python >= 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clients check crash bench soak lock clean

demo: .venv/ready
	$(BIN)/overnight demo

test: .venv/dev
	$(BIN)/python -m pytest tests

# Real agent frameworks, each in an environment of its own, which the first run installs.
clients: .venv/dev
	$(BIN)/python -m pytest tests/clients --durations=5

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

crash: .venv/dev
	$(BIN)/python -m tests.crash.run --kills 200 --store both
	$(BIN)/python -m tests.crash.in_flight --calls 1000 --store both
	$(BIN)/python -m tests.crash.store_stops --seconds 6
	OVERNIGHT_EXPLORE=1 $(BIN)/python -m pytest tests/test_machine_jobs.py

bench: .venv/dev
	$(BIN)/python bench/run_all.py

soak: .venv/dev
	$(BIN)/python bench/soak.py

lock: .venv/python
	$(BIN)/python -m pip install -q --disable-pip-version-check pip-tools
	$(BIN)/pip-compile -q --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --strip-extras -o requirements.lock pyproject.toml
	$(BIN)/pip-compile -q --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --strip-extras --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

.venv/python: $(MAKEFILE_LIST)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Overnight needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@touch $@

.venv/ready: .venv/python requirements.lock pyproject.toml
	@echo "setting up .venv (once) …"
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

.venv/dev: .venv/ready requirements-dev.lock
	@echo "setting up the development tools (once) …"
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.lock
	@touch $@

clean:
	rm -rf .venv .overnight .pytest_cache .ruff_cache .hypothesis
