# `make demo` trains a digits model and evaluates it; `make test` runs the tests. Both create .venv if it does not exist.
# `make demo METHOD=dual_mcmc` runs the demo of Dual-MCMC Teaching.
PYTHON ?= python3
METHOD ?= ddaebm
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint types check clean

demo: $(INSTALLED)
	$(BIN)/python -m hf_ebm.training.demo $(METHOD)

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy hf_ebm

check: lint types test

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info  # keeps outputs/
