# Every target sets up what it needs: `make test` works on a fresh clone.
# METAPLASTIC_DATA, taken from the environment, is the folder with the data sets; the tests that
# need real data are skipped where it is unset.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: help setup peers demo test test-all check check-wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' Makefile

setup: .venv/.stamp ## make .venv and install everything into it (PYTHON=python3.12 for another)

# The stamp is written last, so an interrupted set-up is taken up again.
.venv/.stamp: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@echo "Setting up .venv (about 5 minutes the first time)"
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet 'pip>=23.1'
	@.venv/bin/python -m pip install --quiet -r requirements-dev.txt
	@touch $@

peers: .venv-peers/.stamp ## make .venv-peers with JAX, which `python -m studies bench` compares with

.venv-peers/.stamp: requirements-peers.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@test -x .venv-peers/bin/pip || $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet -r requirements-peers.txt
	@touch $@

demo: setup ## meta-train a first learner and write its pictures to runs/demo
	.venv/bin/python -m studies demo --out runs/demo --overwrite

test: setup ## run the tests but the slow ones (under 10 minutes)
	$(PYTEST) -m "not slow"

test-all: setup ## run all tests
	$(PYTEST)

check: setup ## lint, format and type checks
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/pyright

check-wheel: setup ## build the wheel and try it in an environment with its core dependencies only
	.venv/bin/python -m tools.check_wheel

clean: ## remove caches and build outputs; .venv, .venv-peers and runs/ stay
	rm -rf dist build .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
