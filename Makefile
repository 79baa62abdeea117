# Every verb of the project. `make help` lists them.

PYTHON      ?= python3.11
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
RECIPE      ?= flagship
EMNIST_ROOT ?=
NAME        ?= $(RECIPE)
MODEL       ?= serving/models/emnist.pt
PORT        ?= 8080

VENV       := .venv
TRAIN_VENV := .venv-train
PY         := $(VENV)/bin/python
PIP        := $(PY) -m pip install --quiet --disable-pip-version-check
# Training needs the big environment for a GPU, and for the download of EMNIST by torchvision.
TRAIN_ENV  := $(if $(and $(EMNIST_ROOT),$(if $(shell command -v nvidia-smi),,cpu)),$(VENV),$(TRAIN_VENV))

.DEFAULT_GOAL := help
.PHONY: help demo serve mar batch train test test-slow check format bench clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  variables: PYTHON TORCH_INDEX (empty: PyPI alone) RECIPE NAME EMNIST_ROOT MODEL PORT"

demo: $(VENV)/ready ## package the model, serve it, send the samples, score them, compare
	@$(PY) -m serving.demo --model $(MODEL)

serve: mar ## serve MODEL on PORT until Ctrl-C
	@$(PY) -m serving.local --port $(PORT)

mar: $(VENV)/ready ## package MODEL into build/emnist.mar
	@$(PY) -m serving.package --model $(MODEL)

train: $(TRAIN_ENV)/ready ## train RECIPE into runs/NAME; EMNIST_ROOT: the folder that holds EMNIST/raw
	$(TRAIN_ENV)/bin/python -m training.train --recipe $(RECIPE) --name $(NAME) $(if $(EMNIST_ROOT),--emnist-root $(EMNIST_ROOT))

bench: $(VENV)/ready ## time preparation, network and batch against their limits
	@$(PY) -m serving.bench --model $(MODEL)

test: $(VENV)/ready ## the tests that need nothing but .venv
	@$(PY) -m pytest

test-slow: $(VENV)/ready ## the slow tests; some need EMNIST_ROOT
	@EMNIST_ROOT=$(EMNIST_ROOT) $(PY) -m pytest -m slow

check: $(VENV)/ready ## lint, format and types; only reports
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

format: $(VENV)/ready ## fix what ruff can fix
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

clean: ## remove the environments and what was built; runs/ stays
	rm -rf $(VENV) $(TRAIN_VENV) build .pytest_cache .mypy_cache .ruff_cache

# Torch comes first, alone and without what it depends on: only it is looked for in the CPU index, which keeps the gigabytes
# of CUDA away; an index that cannot be reached costs seconds for every package that is looked for in it.
$(VENV)/ready: requirements/torch.txt requirements/serve.txt requirements/dev.txt
	@echo "installing the environment $(VENV) (a minute or two): torch ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --no-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements/torch.txt
	@echo "... and the rest"
	@$(PIP) -r requirements/torch.txt -r requirements/dev.txt
	@touch $@

$(TRAIN_VENV)/ready: requirements/train.lock
	@echo "installing the training environment $(TRAIN_VENV) (CUDA torch: some GB, a few minutes)"
	@$(PYTHON) -m venv $(TRAIN_VENV)
	@$(TRAIN_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/train.lock
	@touch $@
