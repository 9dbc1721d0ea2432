# `make demo` or `make test` on a fresh machine sets everything up by itself; `make help` lists the rest.

SHELL := /bin/bash
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

# The first interpreter that is new enough and can make virtual environments.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo "$$python"; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test check format bench docker-test clean distclean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with everything in it (once)

demo: $(STAMP) ## Stream live and recorded signals through a real server
	$(BIN)/python -m examples.demo $(ARGS)

serve: $(STAMP) ## Start the server (ARGS="--port 8000 --device cuda")
	$(BIN)/kssm serve $(ARGS)

test: $(STAMP) ## Run the test suite (ARGS="-k scan")
	$(BIN)/python -m pytest $(ARGS)

check: $(STAMP) ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(STAMP) ## Apply the formatter and the safe lint fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Measure the service against the model's own step time
	$(BIN)/kssm bench service $(ARGS)

docker-test: $(STAMP) ## Build the image and stream through it (needs a Docker engine)
	docker/test.sh $(BIN)/python

clean: ## Remove caches and build products
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -path ./.git -prune -o -name __pycache__ -print0 | xargs -0 rm -rf

distclean: clean ## Remove the virtual environment too
	rm -rf $(VENV)

# pip keeps a torch that is already there, so TORCH decides which build is used.
$(STAMP): pyproject.toml clients/python/pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "KSSM needs Python 3.11 or newer with the venv and ensurepip modules, and none was found." >&2; \
		echo "Install one (Debian: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi
	[ -x $(BIN)/python ] || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet -e '.[demo,dev]' -e clients/python
	touch $@
