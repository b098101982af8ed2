# Every target needs only python3 (3.11 or newer, with venv) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SERVICES_VENV := .venv-services
SERVICES_STAMP := $(SERVICES_VENV)/.installed
EXTRAS := s3,slurm,test,bench,docs
SCHEMA := recipes/recipe.schema.json
CLUSTER_SCHEMA := cluster/cluster.schema.json
WRITE_SCHEMA = $(BIN)/python -c 'import sys; from bigmap.config.loading import write_schema; write_schema(sys.argv[1], of=sys.argv[2])'
PYTEST := $(BIN)/python -m pytest
REPORTS := build/reports

# Fields west of Lleida, 2.5 x 2.8 km; cells and blocks are small to match.
RUN_BBOX ?= 0.60,41.62,0.63,41.645
RUN_MAP := maps/catalonia-trial.zarr

.PHONY: help install install-services run test test-slow test-fuzz test-services test-long test-gpu bench lint format schema clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

install: $(STAMP)  ## create .venv with bigmap and all that its development needs

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

install-services: $(SERVICES_STAMP)  ## create .venv-services, where the STAC API of the tests runs

$(SERVICES_STAMP): tests/services/requirements.txt
	test -x $(SERVICES_VENV)/bin/python || $(PYTHON) -m venv $(SERVICES_VENV)
	$(SERVICES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

run: install  ## map part of Catalonia on simulated scenes and score it; needs no network
	$(BIN)/bigmap run recipes/catalonia.yaml --source simulated --bbox $(RUN_BBOX) \
	    --set source.start=2024-05-01 --set source.end=2024-05-31 --set source.scene_px=366 \
	    --set grid.cell_px=256 --set grid.block_px=256 --set grid.shard_px=1024 \
	    --output $(RUN_MAP) --overwrite
	$(BIN)/python scripts/score_trial.py $(RUN_MAP)

test: install  ## the fast tests, some ten minutes on two cores
	$(PYTEST) -n 2 --dist loadfile --junitxml $(REPORTS)/fast.xml

test-slow: install  ## networks trained and run, processes killed, ten thousand blocks
	$(PYTEST) -n 2 --dist loadfile -m '(slow or training) and not long' --junitxml $(REPORTS)/slow.xml

test-fuzz: install  ## two thousand mutated inputs; python -m tests.fuzz gives as many as wanted
	$(PYTEST) -m 'fuzz and not long' --junitxml $(REPORTS)/fuzz.xml

test-services: install install-services  ## tests against a real HTTP server, S3 endpoint and STAC API
	$(PYTEST) -n 2 --dist loadgroup -m 'services and not long' --junitxml $(REPORTS)/services.xml

test-long: install  ## many kills of workers and drivers, walltimes of a minute
	$(PYTEST) -m 'long or faults' --junitxml $(REPORTS)/long.xml

test-gpu: install  ## CPU against GPU, clusters of GPUs, training by NCCL; skipped where there is no GPU
	$(PYTEST) -m gpu --junitxml $(REPORTS)/gpu.xml

bench: install  ## measure; results go to benchmarks/results
	$(BIN)/python -m benchmarks

lint: install  ## style, types, import rules, and whether the schema is up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@mkdir -p build && $(WRITE_SCHEMA) build/recipe.schema.json recipe
	cmp build/recipe.schema.json $(SCHEMA) || { echo 'run "make schema" and commit $(SCHEMA)'; exit 1; }
	@$(WRITE_SCHEMA) build/cluster.schema.json cluster
	cmp build/cluster.schema.json $(CLUSTER_SCHEMA) || { echo 'run "make schema" and commit $(CLUSTER_SCHEMA)'; exit 1; }

format: install  ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: install  ## write the JSON Schemas of recipes and cluster files, for editors
	$(WRITE_SCHEMA) $(SCHEMA) recipe
	$(WRITE_SCHEMA) $(CLUSTER_SCHEMA) cluster

clean:  ## remove what make created, except maps
	rm -rf $(VENV) $(SERVICES_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -prune -exec rm -rf {} +
