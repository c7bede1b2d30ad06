# Everything a newcomer runs. `make help` lists it.
PYTHON ?= python3
# An index to take torch from; empty means the default index of pip.
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEER := build/peer/.installed
OTHER_HUB := build/hub1/.installed
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help install demo peer test test-long check format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

install: $(STAMP) ## create .venv and install everything into it (TORCH_INDEX=URL chooses torch's build)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/pip install -c constraints.txt -e '.[engine,embedded,dev]'
	@touch $@

demo: $(STAMP) ## run the main job on embedded servers: a small zoo in, a better model out
	@$(BIN)/python -m examples.small_zoo.demo

check: $(STAMP) ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

peer: $(PEER) ## mergekit for the parity tests and benchmarks, beside the environment

$(PEER): tests/parity/requirements.txt | $(STAMP)
	rm -rf build/peer
	$(BIN)/pip install -q --no-deps --target build/peer -r tests/parity/requirements.txt
	@touch $@

# The other major of the Hub's client that our dependencies allow.
$(OTHER_HUB): | $(STAMP)
	rm -rf build/hub1
	$(BIN)/pip install -q --no-deps --target build/hub1 huggingface_hub==1.33.0
	@touch $@

test: check peer $(OTHER_HUB) ## all gates and all tests
	$(BIN)/pytest -m "not long"

test-long: $(STAMP) peer $(OTHER_HUB) ## campaigns and long repeats
	$(BIN)/pytest -m long --timeout 7200

clean: ## remove what the demo and the tests left; the environment stays
	rm -rf .demo build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
