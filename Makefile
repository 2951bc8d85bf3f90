# run, test and check set themselves up; they need Python 3.11 or later and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NPM := $(shell command -v npm)

.PHONY: run test check bench bench-peers bench-quick bench-client torture screenshots dist format clean

run: $(VENV)/.run-installed
	@exec $(BIN)/tallywire serve --examples --console-emit=on

test: $(VENV)/.test-installed $(if $(NPM),tests/e2e/node_modules/.installed)
	$(BIN)/pytest $(ARGS)

check: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.run-installed
	$(BIN)/python -m bench $(ARGS)

# About an hour and a half; ARGS="--only fanout --servers tallywire,nchan" for a part of it, --quick for a rough look.
bench-peers: $(VENV)/.run-installed
	@bench/peers/install.sh $(BIN)/pip
	$(BIN)/python -m bench.versus $(ARGS)

# Ratios against those in bench/recorded.json, which ARGS=--record rewrites.
bench-quick: $(VENV)/.run-installed
	$(BIN)/python -m bench.quick $(ARGS)

# Emits a second of one order-service process, gathered by the Python client and not; about two minutes.
bench-client: $(VENV)/.test-installed
	$(BIN)/python -m bench.client $(ARGS)

# Twenty to thirty minutes, on Linux and as root: kills, power cuts, every Nth sync and write made to fail, five minutes
# of churn, a restart with 10,000 streams.
torture: $(VENV)/.test-installed
	$(BIN)/python -m tests.torture --kills 200 $(ARGS)
	$(BIN)/python -m tests.torture --kills 60 --durability process $(ARGS)
	$(BIN)/python -m tests.torture.client_kills --kills 50
	$(BIN)/python -m tests.torture.churn
	$(BIN)/python -m tests.torture.restart
	TALLYWIRE_POWER_CUTS=30 TALLYWIRE_FAILING_CALLS=$(shell seq -s, 1 30) \
		$(BIN)/pytest --durations=0 tests/e2e/test_power_cut.py tests/e2e/test_failing_disk.py

# docs/console-*.png, with a day of orders running through a server; needs Chromium, and faketime for the day's hours.
screenshots: $(VENV)/.test-installed
	$(BIN)/python -m tests.e2e.screenshots

# Wheel and sdist of the server and of the Python client, each installed into an empty environment and tried there.
dist: $(VENV)/.test-installed
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist clients/python
	$(BIN)/python -m tests.release dist

format: $(VENV)/.test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) tests/e2e/node_modules *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Tallywire needs Python 3.11 or later; name one with make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing into $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run-installed: setup.cfg setup.py pyproject.toml handlers/_native.c | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test-installed: setup.cfg setup.py pyproject.toml handlers/_native.c clients/python/pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]' --editable clients/python
	@touch $@ $(VENV)/.run-installed

tests/e2e/node_modules/.installed: tests/e2e/package.json tests/e2e/package-lock.json
	@cd tests/e2e && npm ci --silent --no-audit --no-fund
	@touch $@
