# Everything is made from here; `make help` lists it. The first command makes the environment.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BUF := node_modules/.bin/buf
MODEL := .cache/random-pixtral
SCANNER := .cache/deploy-tools/bin/checkov
# Where pip finds no CPU build of torch by itself, set PIP_EXTRA_INDEX_URL to PyTorch's CPU index.
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-page fuzz soak faults accuracy lint format protos dashboards watch-check watch-live deploy-check bench bench-gateway bench-overload bench-isolation clean

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make the environment and install everything into it

$(INSTALLED): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	@test -x $(BIN)/python || (echo "making the environment $(VENV)" && $(PYTHON) -m venv $(VENV))
	@$(BIN)/python tools/install.py
	@touch $@

$(MODEL)/params.json: $(INSTALLED) models/random_checkpoint.py
	@echo "making a small random checkpoint in $(MODEL)"
	@$(BIN)/python -m models.random_checkpoint $(MODEL)

demo: $(INSTALLED) ## Start the whole stack, ask it about pictures, stop it
	@$(BIN)/pixtral-serve demo --model-dir models/pixtral-mini docs/demo/questions.toml

test: $(INSTALLED) ## Run all tests but those of the page
	@$(BIN)/python -m pytest --ignore=tests/page

test-page: $(INSTALLED) $(BUF) ## Try the page in Chromium, and take its pictures anew
	@tools/chromium
	@mkdir -p docs/pictures/page
	@PAGE_PICTURES=docs/pictures/page $(BIN)/python -m pytest tests/page

fuzz: $(INSTALLED) ## Send a decoder 10,000 wrong, odd and hostile requests, in two minutes
	@$(BIN)/python -m tests.decoder.fuzz --requests 10000

soak: $(INSTALLED) ## Load a decoder for 20 minutes with cancels, and see that nothing grows
	@$(BIN)/python -m tests.decoder.soak --minutes 20

# Those of a schedule: starting and a last look take two more. SEED= another: another schedule.
MINUTES ?= 30
SEED ?= 1
faults: $(INSTALLED) ## Break a running service for MINUTES=30, and check every answer
	@GRPC_VERBOSITY=NONE $(BIN)/python -m tests.faults --seed $(SEED) --minutes $(MINUTES)

accuracy: $(INSTALLED) ## Ask the small model 2,000 held-out questions over the service
	@$(BIN)/python -m bench.accuracy --picture bench/results/confusion.png

bench: $(MODEL)/params.json ## Measure against stock vLLM on the same pictures, in one run
	@$(BIN)/python -m bench.compare --model-dir $(MODEL)

bench-gateway: $(MODEL)/params.json ## Measure what the gateway costs, before a stand-in for the other tiers
	@$(BIN)/python -m bench.gateway --model-dir $(MODEL)

bench-overload: $(MODEL)/params.json ## Offer the real stack five times what it can answer, for two minutes
	@$(BIN)/python -m bench.overload --model-dir $(MODEL)

bench-isolation: $(MODEL)/params.json ## Measure what one tenant feels of another that floods
	@$(BIN)/python -m bench.isolation --model-dir $(MODEL)

lint: $(INSTALLED) $(BUF) ## Check style, types, imports, protos and stubs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BUF) lint
	@$(BUF) format --diff --exit-code
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/generate_stubs.py --check
	@tools/breaking
	@$(MAKE) --no-print-directory watch-check deploy-check

watch-check: $(INSTALLED) ## Check rules, alerts and dashboards
	@promtool=$$($(BIN)/python tools/promtool.py) \
		&& $$promtool check rules --lint-fatal deploy/prometheus/rules.yaml \
		&& $$promtool test rules deploy/prometheus/rules_test.yaml
	@$(BIN)/python -m deploy.grafana.dashboards --check

watch-live: $(MODEL)/params.json ## Let a real Prometheus watch a real stack under load for two minutes
	@$(BIN)/python -m bench.watch --model-dir $(MODEL) --draw bench/results/dashboards

deploy-check: $(INSTALLED) $(SCANNER) $(BUF) ## Check images and manifests: build, schemas, rules, scan
	@$(BIN)/python -m tools.deploy.check .cache/manifests
	@node --test --test-reporter=dot tools/deploy/custom_resources.test.mjs
	@$(BIN)/python -m tools.deploy.as_json .cache/manifests | node tools/deploy/custom_resources.mjs
	@$(SCANNER) --skip-download --quiet --compact --framework kubernetes dockerfile \
		-d .cache/manifests -d deploy/docker && echo "checkov: no findings but those justified in place"

$(SCANNER): requirements/deploy-tools.txt
	@echo "installing what scans the manifests: about a minute"
	@$(PYTHON) -m venv .cache/deploy-tools
	@.cache/deploy-tools/bin/python -m pip install --quiet --quiet -r requirements/deploy-tools.txt
	@touch $@

dashboards: $(INSTALLED) ## Generate the dashboards anew
	@$(BIN)/python -m deploy.grafana.dashboards

format: $(INSTALLED) $(BUF) ## Format the code and the protos
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BUF) format --write

protos: $(INSTALLED) ## Generate the Python stubs anew
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/generate_stubs.py

# Pinned to the digit in package.json, but not locked: a lock would name all of Buf's binaries, not
# all of which every registry carries.
$(BUF): package.json
	@npm install --no-package-lock --no-audit --no-fund --loglevel=error
	@touch $@

clean: ## Remove the environment and everything that was made
	rm -rf $(VENV) .cache node_modules build *.egg-info
