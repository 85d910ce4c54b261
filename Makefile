# `make` lists the targets. CI runs `check` and `test`, and nothing that isn't here.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PARTS := test-faults test-pool test-training test-e2e test-serving test-integration test-unit
POOL := $(wildcard tests/integration/test_pool*.py)
TRAINING := tests/integration/test_trainer.py tests/faults/test_training_kill.py
SERVING := $(addprefix tests/integration/,test_equip.py test_grpc.py test_local_cluster.py test_serving.py)

.DEFAULT_GOAL := help
.PHONY: help install demo fix check test foreign bench docs up down constraints
.PHONY: protos clean-venv $(PARTS)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv with tidepool and everything that it needs

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install ## start a local cluster, train, register, serve and ask a model
	@$(BIN)/tidepool demo

fix: install ## format, and correct what ruff can correct
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

check: install ## format, lint and types, nothing changed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

test: install ## the test suite, two parts at a time: more get into one another's way on two cores
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target $(PARTS)

test-faults: install
	@$(BIN)/pytest -q --durations=10 tests/faults $(addprefix --ignore=,$(TRAINING))

test-pool: install
	@$(BIN)/pytest -q --durations=10 $(POOL)

test-training: install
	@$(BIN)/pytest -q --durations=10 $(TRAINING)

test-e2e: install
	@$(BIN)/pytest -q --durations=10 tests/e2e

test-serving: install
	@$(BIN)/pytest -q --durations=10 $(SERVING)

test-integration: install
	@$(BIN)/pytest -q --durations=10 tests/integration tests/gpu $(addprefix --ignore=,$(POOL) $(TRAINING) $(SERVING))

test-unit: install
	@$(BIN)/pytest -q --durations=10 tests/unit tests/conventions

foreign: install ## clients that aren't ours, against a service: schemathesis and Triton's
	@$(BIN)/python tests/foreign

docs: install ## the pages against the code: commands, links, fields, errors
	@$(BIN)/pytest -q tests/conventions/test_docs.py

bench: install ## every benchmark against its named peers
	@set -e; for each in benchmarks/*/; do echo "$$each"; $(BIN)/python $$each; done

up: install ## start the local cluster
	@$(BIN)/tidepool up

down: install ## end the local cluster
	@$(BIN)/tidepool down

constraints: ## write constraints.txt anew, from the newest versions that fit pyproject.toml
	@set -e; fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(PYTHON) -m venv "$$fresh"; \
	"$$fresh/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[dev,postgres]'; \
	{ grep '^#' constraints.txt; "$$fresh/bin/python" -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' \
	  | LC_ALL=C sort --ignore-case; } > "$$fresh/pins"; \
	cp "$$fresh/pins" constraints.txt

protos: ## generate the protobuf modules anew, with a generator of their own
	@set -e; fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(PYTHON) -m venv "$$fresh"; \
	"$$fresh/bin/python" -m pip install --quiet --disable-pip-version-check 'grpcio-tools==1.75.*' 'setuptools<81'; \
	"$$fresh/bin/python" -m grpc_tools.protoc -I platform --python_out=platform --pyi_out=platform \
	  tidepool/serve/_pb2/open_inference.proto

clean-venv: ## delete .venv
	rm -rf $(VENV)
