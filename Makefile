# Everything is made from here; `make help` lists it. The first command makes the environment.
# A target that needs more than Python says so in its line of the help, and so does its failure.
PYTHON ?= $(shell tools/find_python)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BUF := node_modules/.bin/buf
MODEL := .cache/random-pixtral
TAG ?= $(shell sed -n 's/^appVersion: //p' deploy/helm/pixtral-serve/Chart.yaml)
SCANNER := .cache/deploy-tools/bin/checkov
AUDITOR := .cache/audit/bin/pip-audit
CLIENTS := .cache/clients/bin/pytest .cache/clients-llama-index/bin/pytest
CLIENTS_NPM := .cache/clients/npm/.installed .cache/clients/examples/.installed
PROSE := *.md Makefile pyproject.toml bench cli client core deploy docs gateway models protos services tests tools training
TEST_PARTS := test-e2e test-decoder test-gateway test-rest test-faults
# TORCH=cpu takes PyTorch's CPU build, wherever pip would find the larger one for CUDA.
export TORCH
export PIP_NO_INPUT := 1
# The processes of tests import the project very often: bytecode spares them to compile it.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test $(TEST_PARTS) test-page test-wheel test-buf test-clients compare-api targets-check docs fuzz fuzz-images fuzz-doors fuzz-decoder soak accuracy evals lint lint-style lint-types format protos dashboards watch-check watch-live deploy-check bench bench-public bench-fleet bench-gateway bench-overload bench-isolation clean audit load soak-decoder bench-held bench-refusals faults images images-check sbom structures test-hostile page-libraries go-example java-example

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make the environment and install everything into it

$(INSTALLED): requirements/dev.txt pyproject.toml
	@tools/check_python '$(PYTHON)'
	@test -x $(BIN)/python || (echo "making the environment $(VENV)" && '$(PYTHON)' -m venv $(VENV))
	@$(BIN)/python tools/install.py
	@touch $@

$(MODEL)/params.json: $(INSTALLED) models/random_checkpoint.py
	@echo "making a small random checkpoint in $(MODEL)"
	@$(BIN)/python -m models.random_checkpoint $(MODEL)

demo: $(INSTALLED) ## Start the whole stack, ask it about pictures, stop it
	@$(BIN)/pixtral-serve demo --model-dir models/pixtral-mini docs/demo/questions.toml

# Three at a time, the longest first, since each waits now and then; each is shown when it is over.
# Threads of torch that wait for each other by spinning would stall where more than one process
# computes.
test: $(INSTALLED) ## Run all tests but those that need more than Python
	@OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --keep-going --jobs 3 --output-sync=target \
		$(TEST_PARTS)

test-e2e test-gateway test-decoder test-faults: test-%: $(INSTALLED)
	@$(BIN)/python -m pytest tests/$*

test-rest: $(INSTALLED)
	@$(BIN)/python -m pytest --ignore=tests/page --ignore=tests/wheel --ignore=tests/clients \
		$(patsubst test-%,--ignore=tests/%,$(filter-out test-rest,$(TEST_PARTS)))

test-buf: $(INSTALLED) $(BUF) ## Call a running service as the README does with `buf curl` (needs npm)
	@$(BIN)/python -m pytest -m npm tests/e2e

test-page: $(INSTALLED) $(BUF) ## Try the page in Chromium, and take its pictures anew (needs npm)
	@tools/chromium
	@mkdir -p docs/pictures/page
	@PAGE_PICTURES=docs/pictures/page $(BIN)/python -m pytest tests/page

test-wheel: $(INSTALLED) ## Install the wheel with each extra alone, and try it (needs the network)
	@$(BIN)/python -m pytest tests/wheel

page-libraries: $(INSTALLED) $(BUF) ## Copy the page's libraries anew, of the versions in package.json (needs npm)
	@$(BIN)/python -m tools.page_libraries

test-clients: $(INSTALLED) $(CLIENTS) $(CLIENTS_NPM) ## Try the clients that people have, unmodified (needs npm and the network)
	@$(BIN)/python -m tests.clients $(if $(ONLY),--only '$(ONLY)')

$(CLIENTS): .cache/%/bin/pytest: requirements/%.txt $(INSTALLED)
	@echo "installing the packages of $<: half a minute"
	@$(BIN)/python -m venv .cache/$* --without-pip
	@$(BIN)/python -m uv pip install --quiet --no-deps --require-hashes \
		--python .cache/$*/bin/python --requirement $<
	@touch $@

$(CLIENTS_NPM): .cache/clients/%/.installed: .cache/clients/bin/pytest
	@tools/check_node
	@mkdir -p $(@D) && cp $(filter %/package.json,$^) $(@D)/
	@npm install --prefix $(@D) --no-package-lock --no-audit --no-fund --loglevel=error
	@touch $@

.cache/clients/npm/.installed: tests/clients/commands/package.json
.cache/clients/examples/.installed: examples/typescript/package.json

go-example: $(INSTALLED) ## Build the example in Go with Debian's packages, and run it if PIXTRAL_TARGET is set
	@tools/go_example

java-example: $(INSTALLED) ## Compile the example in Java with Debian's packages, and run it if PIXTRAL_TARGET is set
	@tools/java_example

compare-api: $(INSTALLED) ## Ask stock vLLM and a running stack the same, and compare (needs the network)
	@$(BIN)/python -m bench.compare_api $(ARGS)

# A decoder alone beside all the rest. Starting takes half a minute more.
fuzz: $(INSTALLED) ## Send every door wrong, odd and hostile input for MINUTES=10; SEED= another
	@$(MAKE) --no-print-directory --keep-going --jobs 2 --output-sync=line fuzz-doors fuzz-decoder

fuzz-images: $(INSTALLED) ## Show gateway and encoder COUNT=100000 mutated images, and compare with vLLM's reading; SEED= others
	@$(BIN)/python -m tests.fuzz.images --count $(or $(COUNT),100000) --seed $(SEED)

fuzz-doors: $(INSTALLED)
	@$(BIN)/python -m tests.fuzz --seconds $$(($(or $(MINUTES),10) * 60)) --seed $(SEED)

fuzz-decoder: $(INSTALLED)
	@$(BIN)/python -m tests.decoder.fuzz --requests $$(($(or $(MINUTES),10) * 1000)) --seed $(SEED)

structures: $(INSTALLED) ## Hold ANSWERS=10000 of random tokens to random schemas; SEED= others
	@$(BIN)/python -m tests.decoder.structures --answers $(or $(ANSWERS),10000) --seed $(SEED)

load: $(MODEL)/params.json ## Load a stack, or URL=..., for a minute and report it; ARGS=... are more flags
	@$(BIN)/python -m bench.load $(if $(URL),--base-url $(URL),--model-dir $(MODEL)) $(ARGS)

soak: $(MODEL)/params.json ## Load the whole stack for MINUTES=45, and see that nothing grows
	@$(BIN)/python -m bench.soak --model-dir $(MODEL) --minutes $(or $(MINUTES),45)

soak-decoder: $(INSTALLED) ## Load a decoder alone for 20 minutes with all sorts of calls, and see the same
	@$(BIN)/python -m tests.decoder.soak --minutes 20

# MINUTES= is the length of the schedule; the start and a last check take two minutes more. SEED=
# chooses another schedule.
SEED ?= 1
faults: $(INSTALLED) ## Break a running service for MINUTES=30, and check every answer
	@GRPC_VERBOSITY=NONE exec $(BIN)/python -m tests.faults --seed $(SEED) --minutes $(or $(MINUTES),30)

# Each attack has its own length; MINUTES= sets the length of all together. ARGS=... are more
# flags, such as --only TEXT.
test-hostile: $(INSTALLED) ## Attack a running service beside another tenant, who must not feel it
	@GRPC_VERBOSITY=NONE exec $(BIN)/python -m tests.hostile \
		$(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

accuracy: $(INSTALLED) ## Ask the small model 2,000 held-out questions over the service
	@$(BIN)/python -m bench.accuracy --picture bench/results/confusion.png

# In DATA=bench/data, as docs/how-to/evals.md says. The judge's flags are among ARGS.
evals: $(INSTALLED) ## Ask URL=... the model card's benchmarks, and print their table; ARGS=... are more flags
	@$(BIN)/python -m bench.evals $(if $(URL),--url $(URL)) $(if $(DATA),--data $(DATA)) $(ARGS)

bench: $(MODEL)/params.json ## Measure against stock vLLM on the same pictures, in one run
	@$(BIN)/python -m bench.compare --model-dir $(MODEL)

# On a GPU of 140 GB at Pixtral-12B's size, into docs/benchmarks; elsewhere with a small model, to try it.
bench-public: $(MODEL)/params.json ## Measure everyone's workloads beside stock vLLM, by turns; ARGS=... are more flags
	@$(BIN)/python -m bench.one_card --public $(if $(shell command -v nvidia-smi), \
		--out docs/benchmarks/$(shell date +%F), --model-dir $(MODEL)) $(ARGS)

# On GPUs of 140 GB, into docs/benchmarks; GPUS=1,2,4 measures how it scales.
bench-fleet: $(INSTALLED) ## Measure a fleet beside stock vLLM on GPUS=2, or try it with CPU=2; ARGS=... are more flags
	@$(BIN)/python -m bench.fleet $(if $(CPU),--cpu $(CPU),--gpus $(or $(GPUS),2) \
		--out docs/benchmarks/$(shell date +%F)) $(ARGS)

bench-gateway: $(MODEL)/params.json ## Measure what the gateway costs, before a stand-in for the other tiers
	@$(BIN)/python -m bench.gateway --model-dir $(MODEL)

bench-overload: $(MODEL)/params.json ## Offer the real stack five times what it can answer, for two minutes
	@$(BIN)/python -m bench.overload --model-dir $(MODEL)

bench-held: $(MODEL)/params.json ## Find the capacity, and see whether the stack holds it and ten times it
	@$(BIN)/python -m bench.held --model-dir $(MODEL)

bench-refusals: $(MODEL)/params.json ## Measure what a refusal costs the gateway
	@$(BIN)/python -m bench.refusals --model-dir $(MODEL)

bench-isolation: $(MODEL)/params.json ## Measure what one tenant feels of another that floods
	@$(BIN)/python -m bench.isolation --model-dir $(MODEL)

# The longest checks come first, beside all the rest.
lint: $(INSTALLED) $(BUF) ## Check style, types, imports, protos, stubs and manifests (needs npm)
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target \
		lint-types deploy-check lint-style watch-check targets-check

lint-types: $(INSTALLED)
	@$(BIN)/mypy

lint-style: $(INSTALLED) $(BUF)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@! git grep -nE '^(<{7}|>{7})( |$$)' || (echo "a merge was committed with its conflicts" && false)
	@$(BIN)/lint-imports
	@$(BIN)/python -m tools.check_test_imports
	@$(BIN)/python -m tools.check_prose $(PROSE)
	@$(BUF) lint
	@$(BUF) format --diff --exit-code
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/generate_stubs.py --check
	@tools/breaking

# Copies of the tree without an environment: each target finds there what it needs, or makes it.
targets-check: $(INSTALLED) $(BUF) ## Check that each target installs what it uses (needs npm)
	@$(BIN)/python -m tools.check_targets

watch-check: $(INSTALLED) ## Check rules, alerts, dashboards and the runbook's queries
	@promtool=$$($(BIN)/python tools/promtool.py) \
		&& $$promtool check rules --lint-fatal deploy/prometheus/rules.yaml \
		&& $$promtool test rules deploy/prometheus/rules_test.yaml \
		&& $(BIN)/python -m tools.runbook_queries $$promtool
	@$(BIN)/python -m deploy.grafana.dashboards --check

watch-live: $(MODEL)/params.json ## Let a real Prometheus watch a real stack under load for two minutes
	@$(BIN)/python -m bench.watch --model-dir $(MODEL) --draw bench/results/dashboards

deploy-check: $(INSTALLED) $(SCANNER) $(BUF) ## Check images and manifests: build, schemas, rules, scan (needs npm)
	@$(BIN)/python -m tools.deploy.check .cache/manifests
	@node --test --test-reporter=dot tools/deploy/custom_resources.test.mjs
	@$(BIN)/python -m tools.deploy.as_json .cache/manifests | node tools/deploy/custom_resources.mjs
	@$(SCANNER) --skip-download --quiet --compact --framework kubernetes dockerfile \
		--skip-path static/vendor \
		-d .cache/manifests -d gateway -d services && echo "checkov: no findings but those justified in place"

$(SCANNER): requirements/deploy-tools.txt
	@tools/check_python '$(PYTHON)'
	@echo "installing what scans the manifests: about a minute"
	@'$(PYTHON)' -m venv .cache/deploy-tools
	@.cache/deploy-tools/bin/python -m pip install --quiet --quiet -r requirements/deploy-tools.txt
	@touch $@

# PYTHON_IMAGE= and VLLM_IMAGE= name other bases, such as NAME@sha256:DIGEST.
LABELS = --label org.opencontainers.image.version=$(TAG) \
	$(addprefix --label org.opencontainers.image.revision=,$(shell git rev-parse HEAD 2>/dev/null))
PYTHON_BASE = $(addprefix --build-arg PYTHON_IMAGE=,$(PYTHON_IMAGE))
VLLM_BASE = $(addprefix --build-arg VLLM_IMAGE=,$(VLLM_IMAGE))

images: ## Build the three images with docker, and push them to REGISTRY=...; PYTHON_IMAGE= and VLLM_IMAGE= are other bases
	@test -n '$(REGISTRY)' || { echo "name the registry: make images REGISTRY=registry.example.com" >&2; exit 2; }
	@set -e; build() { \
		image=$(REGISTRY)/pixtral-$${1##*/}:$(TAG); folder=$$1; shift; \
		docker build -f $$folder/Dockerfile $(LABELS) "$$@" -t $$image .; docker push $$image; \
	}; \
	build gateway $(PYTHON_BASE); build services/encoder $(PYTHON_BASE); build services/decoder $(VLLM_BASE)

# Not one of .ci/run's: it needs root.
images-check: $(INSTALLED) ## Build the images on stand-in bases, and run every container of the manifests (needs root, Debian's packages and the network)
	@$(BIN)/python -m tools.images_check $(if $(ONLY),--only $(ONLY)) \
		$(addprefix --python-image ,$(PYTHON_IMAGE)) $(addprefix --vllm-image ,$(VLLM_IMAGE)) \
		$(addprefix --redis-image ,$(REDIS_IMAGE))

sbom: .cache/sbom-tools/bin/cyclonedx-py ## List the packages that each image adds to its base, in CycloneDX's form (needs the network)
	@mkdir -p build/sbom
	@set -e; list() { \
		file=build/sbom/pixtral-$$1.cdx.json; shift; \
		cat "$$@" | PYTHONWARNINGS=ignore $< requirements --pyproject pyproject.toml \
			--output-reproducible --output-file $$file -; echo $$file; \
	}; \
	list gateway requirements/gateway.txt; list decoder requirements/decoder.txt; \
	list encoder requirements/encoder.txt requirements/torch.txt

.cache/sbom-tools/bin/cyclonedx-py:
	@tools/check_python '$(PYTHON)'
	@'$(PYTHON)' -m venv .cache/sbom-tools
	@.cache/sbom-tools/bin/python -m pip install --quiet cyclonedx-bom==7.5.0
	@touch $@

docs: $(INSTALLED) .cache/docs/bin/mkdocs .cache/docs/npm/.installed ## Build the documentation site, and check its links (needs npm)
	@NO_MKDOCS_2_WARNING=1 .cache/docs/bin/mkdocs build --strict && echo "the site: .cache/docs/site/index.html"

.cache/docs/bin/mkdocs: requirements/docs.txt $(INSTALLED)
	@$(BIN)/python -m venv .cache/docs --without-pip
	@$(BIN)/python -m uv pip install --quiet --no-deps --require-hashes \
		--python .cache/docs/bin/python --requirement $<
	@touch $@

.cache/docs/npm/.installed: docs/package.json .cache/docs/bin/mkdocs
	@tools/check_node
	@mkdir -p $(@D) && cp $< $(@D)/
	@npm install --prefix $(@D) --no-package-lock --no-audit --no-fund --loglevel=error
	@touch $@

dashboards: $(INSTALLED) ## Generate the dashboards anew
	@$(BIN)/python -m deploy.grafana.dashboards

format: $(INSTALLED) $(BUF) ## Format the code and the protos (needs npm)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BUF) format --write

protos: $(INSTALLED) ## Generate the Python stubs anew
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python tools/generate_stubs.py

# Pinned to the digit in package.json, but not locked: a lock would name all of Buf's binaries, not
# all of which every registry carries.
$(BUF): package.json
	@tools/check_node
	@npm install --no-package-lock --no-audit --no-fund --loglevel=error
	@touch $@

audit: $(AUDITOR) ## Ask the public advisories about every package of the locks (needs the network)
	@for lock in requirements/*.txt; do \
		echo "$$lock"; $(AUDITOR) --no-deps --disable-pip --progress-spinner off -r $$lock || failed=1; \
	done; test -z "$$failed"

$(AUDITOR):
	@tools/check_python '$(PYTHON)'
	@'$(PYTHON)' -m venv .cache/audit
	@.cache/audit/bin/python -m pip install --quiet pip-audit==2.10.1

clean: ## Remove the environment and everything that was made
	rm -rf $(VENV) .cache node_modules build *.egg-info
