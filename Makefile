# Everything runs in .venv. On Linux, TORCH_INDEX=https://download.pytorch.org/whl/cpu chooses PyTorch's CPU build.
PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --no-compile --disable-pip-version-check -c constraints.txt

.PHONY: install quickstart test lint results check-results oracles clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(PIP) -e ".[dev]"
	touch $@

quickstart: install
	$(BIN)/dreamgym quickstart

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

results: install
	$(BIN)/python -m benchmarks.tables

check-results: install
	$(BIN)/python -m benchmarks.tables --check
	for name in replay experience rl curriculum; do $(BIN)/python -m benchmarks.$$name --check || exit 1; done

# what verl and TRL compute for the golden vectors of the tests, anew, in an environment of its own (3 GB)
oracles: .venv-oracles/.installed
	.venv-oracles/bin/python tests/golden/record.py verl --check
	.venv-oracles/bin/python tests/golden/record.py trl --check

.venv-oracles/.installed:
	$(PYTHON) -m venv .venv-oracles
	.venv-oracles/bin/pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	.venv-oracles/bin/pip install -q verl==0.9.1 trl==1.16.0 cachetools fastapi uvicorn "TransferQueue>=0.1.10" pyzmq msgspec
	touch $@

clean:
	rm -rf runs build dist *.egg-info src/*.egg-info
