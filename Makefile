# potara_jax: `make digits` and `make test` need Python 3.11 or newer and nothing else.
#   make install JAX=cuda13     another accelerator (cpu, cuda12, cuda13, tpu)
#   make digits ARGS="--cells.seeds 0 --cells.clients 50"     any setting, see `make digits ARGS=--help`
#   make digits small=1         a few rounds, to see that everything works

PYTHON ?= python3
JAX ?= cpu
VENV ?= .venv
FLOWER ?= .venv-flower
ARGS ?=
BIN := $(VENV)/bin
SMALL_digits := --out runs/digits-small --cells.seeds 0 --cells.heterogeneity 0.1 \
	--cells.clients 6 --federated.rounds 4 --local.rounds 3 --merging.samples 10 \
	--merging.grid-points 5 --merging.methods uniform grid ties --pretraining.steps 60 --depth 1
SMALL_compare := --out runs/compare-small --cells.seeds 0 --cells.heterogeneity 0.1 \
	--cells.clients 4 --federated.rounds 4 --local.rounds 2 --merging.samples 10 \
	--merging.grid-points 5 --merging.methods uniform --pretraining.steps 60 --depth 1 \
	--algorithms fedsa flora
SMALL_study := --out runs/study-small --cells.seeds 10 --cells.heterogeneity 0.1 \
	--cells.clients 4 --federated.rounds 4 --local.rounds 3 --merging.samples 10 \
	--merging.grid-points 5 --pretraining.steps 60 --depth 1
SMALL_tasks := --out runs/tasks-small --cells.seeds 0 --cells.clients 4 --federated.rounds 3 \
	--local.rounds 2 --merging.samples 10 --merging.grid-points 3 --merging.methods uniform \
	--pretraining.steps 20 --lora.targets q_proj v_proj
FILES := runs/small-files
SMALL_suite := --data-dir $(FILES)/sets --checkpoint $(FILES)/llama --context 96 \
	--cells.clients 8 --training.steps 2 --federated.rounds 2 --federated.longer-rounds 3 \
	--local.rounds 2 --merging.samples 4 --merging.grid-points 3 --merging.methods uniform \
	--compute.precision float32
SMALL_commonsense := --out runs/commonsense-small $(SMALL_suite)
SMALL_flan := --out runs/flan-small $(SMALL_suite)
SMALL_cifar100 := --out runs/cifar100-small --data-dir $(FILES)/sets \
	--checkpoint $(FILES)/vit --test-examples 40 --cells.seeds 0 --cells.heterogeneity 0.5 \
	--cells.clients 4 --federated.rounds 2 --federated.longer-rounds 3 --local.rounds 2 \
	--merging.samples 10 --merging.grid-points 3 --merging.methods uniform \
	--compute.precision float32
SMALL_dinov2 := --out runs/dinov2-small --data-dir $(FILES)/sets \
	--checkpoint tests/models/fixtures/dinov2 --image-size 16 --layers 3 \
	--class-examples 30 --test-examples 40 \
	--cells.seeds 0 --cells.heterogeneity 0.5 --cells.clients 4 --federated.rounds 2 \
	--local.rounds 2 --merging.samples 10 --merging.grid-points 3 --merging.methods uniform
SMALL_sentences := --out runs/sentences-small --data $(FILES)/sentences \
	--checkpoint $(FILES)/bert --lora.targets query value --cells.seeds 0 \
	--cells.clients 6 --training.steps 2 \
	--federated.rounds 2 --local.rounds 2 --merging.samples 4 --merging.grid-points 3 \
	--merging.methods uniform
SMALL_glue := --out runs/glue-small --tasks cola mrpc --data-dir $(FILES)/sets \
	--checkpoint $(FILES)/roberta --context 48 --cells.seeds 0 --training.steps 2 \
	--training.batch-size 8 --federated.rounds 2 --local.rounds 2 --merging.samples 4 \
	--merging.grid-points 3 --merging.methods uniform --compute.precision float32
SMALL_bench := --out runs/bench-small --clients 2 --depth 1 --repeats 1 --max-clients 4
SMALL_bench-accelerator := --out runs/bench-accelerator-small --tiny
EXTRA = $(if $(small),$(SMALL_$@))
MAKE_FILES = $(if $(small),$(FILES)/.made)

# Where it is set, every process would compile all packages anew, which uv has not done.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install test test-all test-oldest lint docs wheel digits tasks sentences cifar100 dinov2 glue commonsense flan compare study bench bench-accelerator flower test-flower clean

help:  ## show this
	@echo "targets (settings: PYTHON=$(PYTHON) JAX=$(JAX) VENV=$(VENV) ARGS= small=)"
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# Packages for a Python, by uv, which is fast, or by pip where uv finds no index.
packages = $(BIN)/python -m uv pip install --quiet --python $(1) $(2) || $(1) -m pip install -qq $(2)

install: $(VENV)/.installed-$(JAX)  ## make .venv and install everything (JAX=cpu|cuda13|tpu)

$(VENV)/.installed-$(JAX): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: $(PYTHON) is older than Python 3.11; set PYTHON=python3.12 or so" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	$(call packages,$(BIN)/python,--editable '.[dev]' $(if $(filter-out cpu,$(JAX)),'jax[$(JAX)]'))
	rm -f $(VENV)/.installed-*
	touch $@

$(FILES)/.made: tests/small.py tests/data/raw_sets.py | install
	rm -rf $(FILES)
	$(BIN)/python -m tests.small $(FILES)
	touch $@

PYTEST = OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test: install  ## run the tests but for the slow ones (6 minutes on 2 cores)
	$(PYTEST) -m "not slow" $(ARGS)

test-all: install  ## run all tests (10 minutes on 2 cores)
	$(PYTEST) $(ARGS)

test-oldest:  ## run the tests with the oldest versions that are allowed, in .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	.venv-oldest/bin/python -m uv pip install --quiet --resolution lowest-direct --editable '.[dev]'
	OPENBLAS_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n auto --dist loadfile $(ARGS)

lint: install  ## check style, imports and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

docs: install  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

wheel: install  ## build a wheel, and check it in a fresh environment
	rm -rf $(VENV)/wheel $(VENV)/wheel-env build *.egg-info
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(VENV)/wheel .
	rm -rf build
	$(PYTHON) -m venv $(VENV)/wheel-env
	$(call packages,$(VENV)/wheel-env/bin/python,$(VENV)/wheel/*.whl)
	cd $(VENV)/wheel && ../wheel-env/bin/python -P $(CURDIR)/tests/check_wheel.py

digits: install  ## federate and personalise a ViT on handwritten digits (3 to 5 minutes on 2 cores)
	$(BIN)/potara run digits $(EXTRA) $(ARGS)

tasks: install  ## the same of a small Llama, on generated text tasks (6 minutes on 2 cores)
	$(BIN)/potara run tasks $(EXTRA) $(ARGS)

sentences: install $(MAKE_FILES)  ## MiniLM on SST-2 and TREC (downloads), or on yours: make sentences DATA=FOLDER
	$(BIN)/potara run sentences $(if $(DATA),--data $(DATA)) $(EXTRA) $(ARGS)

cifar100: install $(MAKE_FILES)  ## ViT-B/16 on CIFAR-100, as in the paper (downloads; an accelerator)
	$(BIN)/potara run cifar100 $(EXTRA) $(ARGS)

dinov2: install $(MAKE_FILES)  ## DINOv2-S on CIFAR-100, in a size for 2 cores: make dinov2 DATA="FILE.npz ..."
	$(BIN)/potara run dinov2 $(if $(DATA),--data $(DATA)) $(EXTRA) $(ARGS)

glue: install $(MAKE_FILES)  ## RoBERTa-base on a task of GLUE: make glue ARGS="--tasks mnli" (downloads; an accelerator)
	$(BIN)/potara run glue $(EXTRA) $(ARGS)

commonsense: install $(MAKE_FILES)  ## Llama-3.2-3B on eight commonsense tasks (downloads; an accelerator)
	$(BIN)/potara run commonsense $(EXTRA) $(ARGS)

flan: install $(MAKE_FILES)  ## Llama-3.2-3B on eight tasks of FLAN (downloads; an accelerator)
	$(BIN)/potara run flan $(EXTRA) $(ARGS)

compare: install  ## every federated algorithm and merge in one table (an hour on 2 cores)
	$(BIN)/potara compare digits $(EXTRA) $(ARGS)

flower: $(FLOWER)/.installed  ## deploy the digits with Flower: a server and four nodes, in .venv-flower
	$(FLOWER)/bin/python examples/flower/deploy.py $(ARGS)

test-flower: $(FLOWER)/.installed  ## test deployed federations, in .venv-flower (a minute on 2 cores)
	OPENBLAS_NUM_THREADS=1 $(FLOWER)/bin/python -m pytest tests/flower $(ARGS)

# Flower's pins are narrow, so it has an environment of its own.
$(FLOWER)/.installed: pyproject.toml
	test -x $(FLOWER)/bin/python || $(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/python -m pip install --quiet --editable '.[flower]' scikit-learn pytest hypothesis
	touch $@

study: install  ## which merge weight is best: all of them on many federations (an hour on 2 cores)
	$(BIN)/potara study digits $(EXTRA) $(ARGS)

bench: install  ## speed and memory, as ratios within one run
	$(BIN)/python -m benchmarks.run $(EXTRA) $(ARGS)

bench-accelerator: install  ## what an accelerator does, in 8 minutes (JAX=cuda13)
	$(BIN)/python -m benchmarks.accelerator $(EXTRA) $(ARGS)

clean:  ## remove .venv and caches, keep runs
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info build site
