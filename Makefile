# `make help` lists the targets. Each sets up what it needs: a virtual environment with everything installed.
#   make <paper> MODEL=... DATA=... HARDWARE=... ARGS="seed=0,1,2"     all experiments of one paper, its claims, the report
#   BOX=DIR is where slurm-up puts its cluster.
#   VENV=DIR uses (or makes) that environment, PYTHON=python3.12 makes it with that interpreter.

SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
STAMP := $(VENV)/.repro-installed
RUNS ?= runs
BOX ?= .slurm
LM_EVAL ?= $(VENV)/lm-eval
# One process a core; a file stays in one process, so what it compiles is compiled once.
PARALLEL ?= -n auto --dist loadfile
PAPERS := $(filter-out TEMPLATE,$(notdir $(patsubst %/,%,$(wildcard papers/*/))))
CHOICES := $(if $(MODEL),model=$(MODEL)) $(if $(DATA),data=$(DATA)) $(if $(HARDWARE),hardware=$(HARDWARE)) \
           $(if $(TRACKING),tracking=$(TRACKING)) runs_dir=$(RUNS) $(ARGS)

.DEFAULT_GOAL := help
.PHONY: help setup reproduce papers report publish test test-slow test-slurm test-lm-eval slurm-up slurm-down check format smoke bench clean $(PAPERS)

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | awk -F'\t' '{printf "  %-12s %s\n", $$1, $$2}'
	@echo "  one a paper: $(PAPERS)"

setup: $(STAMP) ## the environment and the installed packages

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Installed again whenever the dependencies change.
$(STAMP): pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

reproduce: $(STAMP) ## the headline experiment of every paper, then the report
	@code=0; $(PY) launch.py headline $(CHOICES) || code=$$?; \
	    $(PY) launch.py report runs_dir=$(RUNS) || code=$$?; exit $$code

$(PAPERS): $(STAMP)
	@code=0; $(PY) launch.py -m 'paper/$@=glob(*,exclude=[base,smoke,inspect])' $(CHOICES) || code=$$?; \
	    $(PY) launch.py claims $@ runs_dir=$(RUNS) || code=$$?; \
	    $(PY) launch.py report runs_dir=$(RUNS) || code=$$?; exit $$code

papers: $(STAMP) ## every experiment of every paper, then the report
	@code=0; for paper in $(PAPERS); do $(MAKE) --no-print-directory $$paper || code=$$?; done; \
	    $(PY) launch.py report runs_dir=$(RUNS) || code=$$?; exit $$code

report: $(STAMP) ## every claim and figure of everything run so far
	$(PY) launch.py report runs_dir=$(RUNS)

publish: $(STAMP) ## to Weights & Biases what ran offline
	$(PY) launch.py publish runs_dir=$(RUNS)

smoke: $(STAMP) ## the tiny twin of every paper, CPU, under a minute each
	@code=0; for paper in $(PAPERS); do $(PY) launch.py paper/$$paper=smoke hardware=debug rerun=true \
	    tracking=disabled runs_dir=$(RUNS)/smoke $(ARGS) || code=$$?; done; exit $$code

test: $(STAMP) ## the tests, without the slow ones
	$(PY) -m pytest $(PARALLEL) -m 'not slow and not slurm' $(ARGS)

test-slow: $(STAMP) ## the slow tests
	$(PY) -m pytest $(PARALLEL) -m 'slow and not slurm' $(ARGS)

test-slurm: $(STAMP) ## the tests on a real SLURM (Debian: apt-get install slurm-wlm)
	$(PY) tests/slurm/box.py inside $(PY) -m pytest -m slurm -rs --durations=10 tests/slurm $(ARGS)

# lm-eval lies in an environment of its own on top of $(VENV), so that its dependencies change no other test.
test-lm-eval: $(STAMP) ## the tests against lm-evaluation-harness, installed for them
	@test -x $(LM_EVAL)/bin/python || $(PY) -m venv $(LM_EVAL)
	@$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > "$$($(LM_EVAL)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	@wanted=$$($(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"] \
	    ["optional-dependencies"]["lm-eval"])') && \
	if timeout 300 $(LM_EVAL)/bin/python -m pip install --quiet --disable-pip-version-check $$wanted; then \
	    $(LM_EVAL)/bin/python -m pytest -rs tests/data/test_lm_eval_tasks.py $(ARGS); \
	else echo "lm-eval cannot be installed: its tests will skip" >&2; fi

slurm-up: ## a throw-away SLURM on this machine, for trying things out
	@$(PYTHON) tests/slurm/box.py up $(BOX)

slurm-down: ## stop it with all its jobs, and remove its directory, also after a crash
	@$(PYTHON) tests/slurm/box.py down $(BOX)

check: $(STAMP) ## what CI checks: ruff, pyright, pytest
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)
	$(PY) -m pytest $(PARALLEL) -m 'not slow and not slurm'

format: $(STAMP) ## ruff's fixes and formatting
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(STAMP) ## every benchmark
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(PY) $$file $(ARGS); done

clean: ## caches and build products; neither runs nor the environment
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
