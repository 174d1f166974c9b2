# Sets up .venv and calls the course's own command line; without make, see the README.

# The first Python of a supported version; `make PYTHON=/path/to/python` chooses another.
PYTHON := $(shell for python in python3 python3.12 python3.13 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
COURSE := $(BIN)/python -m minillm.course

.DEFAULT_GOAL := help
.PHONY: course test lab bench help

course: .venv/.learner  ## run every lesson and report what it measured (ARGS="04 --seed 3")
	$(COURSE) fetch --all
	$(COURSE) run $(ARGS)

test: .venv/.developer  ## prove it: lint, unit, parity, exercises, distributed, lessons, browser
	$(COURSE) fetch --all
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 tests/unit tests/parity tests/exercises
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/distributed
	$(BIN)/pytest tests/notebooks tests/browser

lab: .venv/.learner  ## open the course in JupyterLab
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks

bench: .venv/.developer  ## compare speed with well-known libraries, side by side
	$(BIN)/python tests/bench

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*##/  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

# The stamps say what .venv holds, so that nothing is installed twice.
.venv/.learner: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e .
	touch $@

.venv/.developer: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[parity,teach,dev]'
	touch $@ .venv/.learner

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed and none was found"; exit 1; }
	$(PYTHON) -m venv .venv
