# The front door: `make help` lists what can be done here.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BENCH_SIZE ?= full
MODEL_MINUTES ?= 10
MODEL_DATABASE ?= sqlite
FUZZ_MINUTES ?= 10
# more words for pytest, such as TESTS=tests/api or ARGS='-x -k extend'
TESTS ?= tests
ARGS ?=
# more suites for `make test`, such as BESIDE='test-ceph test-vm-quick'
BESIDE ?=

export PYTHONUNBUFFERED := 1
bin := $(VENV)/bin
ready := $(VENV)/.ready

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##### run it

.PHONY: demo
demo: venv ## Run the main job on real parts: image, volume, iSCSI, a guest booted from it (root, Debian)
	@$(bin)/python demo/demo

.PHONY: serve
serve: venv ## Run the service on 127.0.0.1:8776 with the demo's image in it, until Ctrl-C
	@$(bin)/python demo/serve

.PHONY: cloud
cloud: venv ## Run a Keystone and a Glance to try the service with, until Ctrl-C (root, Debian)
	@$(bin)/python -m tests.clouds

##### test it

.PHONY: test
test: packages venv lint types ## Run all checks, all tests on SQLite, recovery on PostgreSQL too, the shared suite everywhere
	@# side by side: much of both is waiting, for leases to end and for servers to start
	@$(MAKE) --no-print-directory --jobs=2 --keep-going pytest beside

# one after another, whatever becomes of them
.PHONY: beside
beside:
	@status=0; for each in test-shared $(BESIDE); do $(MAKE) --no-print-directory $$each || status=1; done; exit $$status

.PHONY: pytest
pytest: venv
	$(bin)/python -m pytest $(TESTS) $(ARGS) -o faulthandler_timeout=300

# what differs between databases: statements, locks, races, restarts, and the API over them
shared := tests/contract/test_store.py tests/contract/test_shared.py tests/contract/test_schema.py \
	tests/api/test_smoke.py tests/api/test_volumes.py tests/api/test_snapshots.py \
	tests/api/test_quotas.py

.PHONY: test-shared
test-shared: packages venv
	$(bin)/python -m pytest $(shared) tests/contract/test_journal.py tests/recovery tests/model $(ARGS) --database postgresql -o faulthandler_timeout=300
	$(bin)/python -m pytest $(shared) tests/recovery/test_kill.py $(ARGS) --database mariadb -o faulthandler_timeout=300

.PHONY: test-postgresql
test-postgresql: packages venv ## Run all tests on PostgreSQL
	$(bin)/python -m pytest $(TESTS) $(ARGS) --database postgresql -o faulthandler_timeout=300

.PHONY: test-mariadb
test-mariadb: packages venv ## Run all tests on MariaDB
	$(bin)/python -m pytest $(TESTS) $(ARGS) --database mariadb -o faulthandler_timeout=300

.PHONY: test-fast
test-fast: venv lint types ## Run the checks, and the tests that start no real storage or guest
	$(bin)/python -m pytest tests/architecture tests/unit $(ARGS)

.PHONY: model
model: venv ## Compare the service with its model: MODEL_MINUTES=10, MODEL_DATABASE=sqlite, ARGS='--seed 1'
	$(bin)/python -m tests.model.run --minutes $(MODEL_MINUTES) --database $(MODEL_DATABASE) $(ARGS)

.PHONY: fuzz
fuzz: venv ## Call the API as its OpenAPI document has it: FUZZ_MINUTES=10, ARGS='--seed 1'
	$(bin)/python -m tests.fuzz.run --minutes $(FUZZ_MINUTES) $(ARGS)

.PHONY: test-ceph
test-ceph: venv ## Run the tests that need a Ceph, on one that is made for them (root, Debian)
	$(bin)/python -m pytest tests/ceph tests/contract $(ARGS) --ceph -o faulthandler_timeout=300

.PHONY: test-vm
test-vm: venv ## Run the tests that need Linux's own storage, in a virtual machine (root, Debian)
	$(bin)/python -m tests.vm $(ARGS)

.PHONY: test-vm-quick
test-vm-quick: venv ## The same without thick volumes, and without LVM's own tests
	$(bin)/python -m tests.vm --quick $(ARGS)

.PHONY: lint
lint: venv ## Check style and formatting
	$(bin)/ruff check .
	$(bin)/ruff format --check .

.PHONY: types
types: venv ## Check types, strictly
	$(bin)/mypy

.PHONY: conformance
conformance: venv ## Run Tempest's volume tests against the service, with Keystone and Glance (root, Debian)
	$(bin)/python -m tests.clouds.conformance

.PHONY: bench
bench: packages venv ## Measure it; BENCH_SIZE=tiny only shows that the measurements run
	$(bin)/python bench/run.py --size $(BENCH_SIZE)

##### look after it

.PHONY: venv
venv: $(ready) ## Make .venv with exactly what the lock file names (redone only when that changes)
	@:

$(ready): requirements/test.txt scripts/make-venv
	@echo "Making $(VENV) ..."
	@scripts/make-venv $(VENV) $(PYTHON) requirements/test.txt
	@touch $@

.PHONY: packages
packages: ## Install the Debian packages that are missing, without starting any daemon (root)
	@scripts/install-packages

.PHONY: docs
docs: venv ## Write the generated pages of docs/ anew
	$(bin)/python scripts/generate_docs.py

.PHONY: clients
clients: packages venv ## Run every command of the clients, and write the table of them anew
	LAPILLI_WRITE_CLIENTS=1 $(bin)/python -m pytest tests/acceptance/test_commands.py $(ARGS)

.PHONY: clients-keystone
clients-keystone: packages venv ## The same with a Keystone and a Glance, but only check the table
	LAPILLI_CLIENTS_IDENTITIES=keystone $(bin)/python -m pytest tests/acceptance/test_commands.py $(ARGS)

.PHONY: openapi
openapi: venv ## Write the API's OpenAPI 3.1 document to build/openapi.json
	$(bin)/python scripts/generate_docs.py --openapi build/openapi.json

.PHONY: lock
lock: ## Resolve the dependencies anew into requirements/*.txt
	scripts/make-locks $(PYTHON)

.PHONY: clean
clean: ## Remove everything that can be made again (not ./var, where your volumes are)
	rm -rf $(VENV) build demo/work bench/results *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
