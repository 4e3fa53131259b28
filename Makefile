# Two commands on a fresh machine with Python >= 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clients clients-all check wheel image crash effect-storm bench soak lock clean

demo: .venv/ready
	$(BIN)/overnight demo

# Three processes on two cores, each with servers of its own; then the tests that need the cores for themselves.
test: .venv/dev
	$(BIN)/python -m pytest tests -n 3 --dist worksteal -m 'not alone'
	$(BIN)/python -m pytest $$(grep -rlw --include='test_*.py' 'mark.alone' tests) -m alone

# Real agent frameworks, each in an environment of its own, which the first run installs.
clients: .venv/dev
	$(BIN)/python -m pytest tests/clients --ignore tests/clients/by_hand --durations=5

# Further clients, and suites of theirs: run by hand, since they take long to install.
clients-all: clients
	$(BIN)/python -m pytest tests/clients/by_hand -s --durations=5

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# The wheel, installed as a user would in an environment of its own, runs the demo outside of this folder.
wheel: .venv/ready
	rm -rf build/wheel && mkdir -p build/wheel
	$(BIN)/python -m pip wheel -q --no-index --no-build-isolation --no-deps -w build/wheel .
	$(PYTHON) -m venv build/wheel/env
	build/wheel/env/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-demo.lock
	build/wheel/env/bin/python -m pip install -q --disable-pip-version-check --no-index --no-deps build/wheel/*.whl
	cd build/wheel && OVERNIGHT_HOME=$(CURDIR)/build/wheel/home env/bin/overnight demo --json

# The container image, where docker or podman is.
image:
	$(or $(shell command -v docker || command -v podman),$(error neither docker nor podman is installed)) build -t overnight .

crash: .venv/dev
	$(BIN)/python -m tests.crash.run --kills 200 --store both
	$(BIN)/python -m tests.crash.in_flight --calls 1000 --store both
	$(BIN)/python -m tests.crash.store_stops --seconds 6
	OVERNIGHT_EXPLORE=1 $(BIN)/python -m pytest tests/jobs/test_machine_jobs.py
	$(MAKE) effect-storm

# 10,000 effects in jobs, attached programs and over HTTP, per store; then broken products, which the judge has to find.
effect-storm: .venv/dev
	$(BIN)/python -m tests.crash.effect_storm --effects 10000 --kills 400 --stops 40 --store both
	! $(BIN)/python -m tests.crash.effect_storm --effects 48 --store sqlite --settle-s 15 --mutant ignores_unknown
	! $(BIN)/python -m tests.crash.effect_storm --effects 48 --store sqlite --settle-s 15 --mutant asks_nobody

bench: .venv/dev
	$(BIN)/python bench/run_all.py

soak: .venv/dev
	$(BIN)/python bench/soak.py

# `make lock` keeps the versions that stand in the locks; delete one to take the newest.
COMPILE := $(BIN)/pip-compile -q --generate-hashes --allow-unsafe --strip-extras \
	--no-emit-index-url --no-emit-find-links --no-emit-trusted-host
lock: .venv/dev
	$(COMPILE) -o requirements.lock pyproject.toml
	$(COMPILE) --only-build-deps --all-build-deps -o requirements-build.lock pyproject.toml
	$(COMPILE) --extra demo -c requirements.lock -o requirements-demo.lock pyproject.toml
	$(COMPILE) --extra dev -c requirements.lock -c requirements-demo.lock -o requirements-dev.lock pyproject.toml
	$(COMPILE) --extra providers -c requirements.lock -o requirements-providers.lock pyproject.toml
	$(BIN)/python sbom.py > sbom.cdx.json

.venv/python: $(MAKEFILE_LIST)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Overnight needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@touch $@

# Each file that pip takes is in a lock by its hash. The project itself is built by what the first line installs.
INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check
.venv/ready: .venv/python requirements-build.lock requirements-demo.lock pyproject.toml
	@echo "setting up .venv (once) …"
	$(INSTALL) --require-hashes -r requirements-build.lock
	$(INSTALL) --require-hashes -r requirements-demo.lock
	$(INSTALL) --no-index --no-build-isolation --no-deps -e .
	@touch $@

.venv/dev: .venv/ready requirements-dev.lock
	@echo "setting up the development tools (once) …"
	$(INSTALL) --require-hashes -r requirements-dev.lock
	@touch $@

clean:
	rm -rf .venv .overnight .pytest_cache .ruff_cache .hypothesis
