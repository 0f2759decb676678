# A new machine needs Python 3.11 or newer, make and git; everything else goes into .venv, which each target sets up.

# Another interpreter: make test PYTHON=/path/to/python3.12. Otherwise the first of these that is new enough.
PYTHONS := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
# How many tests run at once. Each worker loads PyTorch (about 0.6 GB), so many cores do not mean many workers.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ "$$n" -lt 8 ] && echo "$$n" || echo 8)
# More arguments for pytest: make test ARGS="tests/combine -k vertex"
ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test check format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(INSTALLED) ## make .venv and install into it what constraints.txt pins (the other targets do this by themselves)

demo: $(INSTALLED) ## a real trade-off between objectives, made here, offline, in minutes; names its report
	$(BIN)/paretune demo --out demo

test: $(INSTALLED) ## run the tests; ARGS="tests/combine -k vertex" chooses some, WORKERS=1 runs them one by one
# One thread per worker: workers that each take every core slow each other down several times over.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal $(ARGS)

check: $(INSTALLED) ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## mend lint and formatting where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches and build outputs; .venv stays
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted installation is taken up again; an environment without a stamp is installed
# into as it is. pip leaves alone what already has the pinned version.
$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing what constraints.txt pins into .venv (PyTorch is large: one to several minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,quant]'
	@touch $@

$(BIN)/python:
	@for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making .venv with $$("$$python" --version)"; \
	    "$$python" -m venv .venv && exit 0; \
	    rm -rf .venv; \
	    echo "That Python could not make a virtual environment (on Debian and Ubuntu: install python3-venv)." >&2; \
	    exit 1; \
	  fi; \
	done; \
	echo "paretune needs Python 3.11 or newer; looked for: $(PYTHONS). Found: $$(python3 --version 2>&1)." >&2; \
	echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
	exit 1
