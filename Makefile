# `make demo` and `make test` set up everything they need in .venv on their first run.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable

# The tests start hundreds of short processes: what one has compiled, the next need not compile again.
unexport PYTHONDONTWRITEBYTECODE

# What measures time, or fills the machine's cores, is not run beside anything else.
IN_TURN := $(addprefix tests/bench/,watching measuring/test_truth.py) \
	$(addprefix tests/bench/generator/test_,calibration.py dispatcher.py generator.py pacer.py server_timing.py) \
	$(addprefix tests/tuning/,gating/test_real_servers.py prediction/test_predict.py prediction/test_processor.py test_find_max.py test_tax.py) \
	tests/scorecard/test_driver.py tests/scorecard/test_scorecard.py

# What mostly waits bears a few of its kind beside it.
UNHURRIED := tests/scorecard/test_unhurried.py

.PHONY: help demo test test-slow gate baseline scorecard scorecard-long check proto clean

help:
	@echo "make demo    optimize, serve, load-test and tune a real model; ends with a report"
	@echo "make test    the test suite"
	@echo "make test-slow   what takes longest: more kinds of models through every pass"
	@echo "make scorecard   load, faults, bad input, attacks: 40 tests, each with a control; reports/scorecard.md"
	@echo "make scorecard-long   the same as for a release: hours"
	@echo "make gate    our server as it is here against BASE (main), on this machine"
	@echo "make baseline   our server measured once more, for reports/history and reports/baseline"
	@echo "make check   formatting, lint and types"
	@echo "make proto   compile the gRPC messages again"
	@echo "make clean   remove .venv and what the demo wrote"

demo: $(VENV)/.demo-installed
	@$(BIN)/python recipes/demo.py

test: $(VENV)/.test-installed
	@sh tests/install_tools.sh
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder $(IN_TURN:%=--ignore %) --ignore $(UNHURRIED)
	$(BIN)/python -m pytest --numprocesses 3 --dist load $(UNHURRIED)
	$(BIN)/python -m pytest $(IN_TURN)

test-slow: $(VENV)/.test-installed
	$(BIN)/python -m pytest --slow --numprocesses 2 tests/optimize tests/cli tests/engines tests/serve

BASE ?= main
gate: $(VENV)/.demo-installed
	$(BIN)/python benchmarks/own_gate.py --base $(BASE)

baseline: $(VENV)/.demo-installed
	$(BIN)/python benchmarks/own_baseline.py

scorecard: $(VENV)/.test-installed
	$(BIN)/python benchmarks/scorecard

scorecard-long: $(VENV)/.test-installed
	$(BIN)/python benchmarks/scorecard --form long

check: $(VENV)/.dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

proto: $(VENV)/.dev-installed
	$(BIN)/python -m grpc_tools.protoc --proto_path=mlserve/wire --descriptor_set_out=mlserve/wire/inference.binpb inference.proto
	$(BIN)/python -m grpc_tools.protoc --proto_path=mlserve/wire --include_imports --descriptor_set_out=mlserve/wire/tensorflow.binpb tensorflow.proto

clean:
	rm -rf $(VENV) demo

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit("mlserve needs Python 3.11 or later, and $(PYTHON) is %d.%d; try: make PYTHON=python3.12 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python's venv module is missing; on Debian: apt install python3-venv"; exit 1; }

$(VENV)/.%-installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "installing mlserve[$*] (once, a few minutes)"
	@$(INSTALL) '.[$*]'
	@touch $@
