# One name for each habit: a person, a hook and CI use the same. `make help` lists them.
PYTHON := .venv/bin/python

help:     ## this list
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

.venv:
	python3 -m venv .venv && .venv/bin/pip install --quiet -r requirements-dev.txt

test: | .venv    ## the tests that need no second process, browser or installation
	$(PYTHON) -m pytest

slow: | .venv    ## the others: kills, torchrun, browser, wheel, fuzzing, studies, reports
	$(PYTHON) -m pytest -m slow

check: | .venv    ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/mypy

all: check test slow    ## all of these

figure: | .venv    ## the assignment's default run, into outputs/
	$(PYTHON) SID_a4.py

report: | .venv    ## the example report, into report/
	$(PYTHON) report/build.py

.PHONY: help test slow check all figure report
