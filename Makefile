# Every verb of the project. `make help` lists them.

PYTHON      ?= python3.11
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
RECIPE      ?= flagship
EMNIST_ROOT ?=
CHROMIUM    ?=
TEST_PROCESSES ?= logical
NAME        ?= $(RECIPE)
MINUTES     ?= 20
MODEL       ?= serving/models/emnist.pt
PORT        ?= 8080

# Images and where they run; DEVICE is cpu or gpu.
VERSION            ?= $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
IMAGE_PREFIX       ?= docker.io/library/emnist
DOCKER             ?= docker
DOCKER_BUILD_FLAGS ?=
LOAD_IMAGE         ?=
OVERLAYS           ?= overlays
KILL_NODE          ?=
DEVICE             ?= cpu
TRAIN_DEVICE       ?= gpu

# Load tests.
HOST     ?= http://127.0.0.1:$(PORT)
USERS    ?= 32
RUN_TIME ?= 60s
SHAPE    ?= steady

VENV       := .venv
TRAIN_VENV := .venv-train
LINT_VENV  := .venv-lint
COMPARE_VENV := .venv-compare
PEERS_VENV := .venv-peers
TRITON_VENV := .venv-triton
PY         := $(VENV)/bin/python
PIP        := $(PY) -m pip install --quiet --disable-pip-version-check
# Training needs the big environment for a GPU, and for the download of EMNIST by torchvision.
TRAIN_ENV  := $(if $(and $(EMNIST_ROOT),$(if $(shell command -v nvidia-smi),,cpu)),$(VENV),$(TRAIN_VENV))

.DEFAULT_GOAL := help
.PHONY: help demo serve mar train reproduce evaluate compare bench test test-slow browser-test conformance-test check check-manifests format clean
.PHONY: set-version
.PHONY: train-bench images images-serve images-train load-images load-train train-container publish roll-out container-test cluster-test chaos-test load-test sweep bench-serving

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  variables: PYTHON TORCH_INDEX (empty: PyPI alone) RECIPE NAME MINUTES EMNIST_ROOT MODEL PORT TEST_PROCESSES"
	@echo "  of images: VERSION IMAGE_PREFIX DOCKER (docker or podman) DOCKER_BUILD_FLAGS LOAD_IMAGE OVERLAYS KILL_NODE DEVICE TRAIN_DEVICE (cpu or gpu)"
	@echo "  of load tests: HOST USERS RUN_TIME SHAPE (steady, step, spike)"

demo: $(VENV)/ready ## package the model, serve it, send the samples, score them, compare
	@$(PY) -m serving.demo --model $(MODEL)

serve: mar ## serve MODEL and the drawing page on PORT until Ctrl-C
	@$(PY) -m serving.local --port $(PORT)

mar: $(VENV)/ready ## package MODEL into build/emnist.mar
	@$(PY) -m serving.package --model $(MODEL)

train: $(TRAIN_ENV)/ready ## train RECIPE (flagship, system-a to system-e) into runs/NAME; EMNIST_ROOT: the folder of EMNIST/raw, or of another data.source
	$(TRAIN_ENV)/bin/python -m training.train --recipe $(RECIPE) --name $(NAME) $(if $(EMNIST_ROOT),--emnist-root $(EMNIST_ROOT))

train-bench: $(TRAIN_ENV)/ready ## time training RECIPE beside the bare forward and backward pass of its network; needs EMNIST_ROOT
	@$(TRAIN_ENV)/bin/python -m benchmarks.training_steps --recipe $(RECIPE) $(if $(EMNIST_ROOT),--emnist-root $(EMNIST_ROOT))

reproduce: $(TRAIN_ENV)/ready ## five systems' recipes beside the flagship on their data, MINUTES each (an hour and a half); what runs/reproduce holds is kept
	$(TRAIN_ENV)/bin/python -m benchmarks.reproduce --minutes $(MINUTES) $(if $(EMNIST_ROOT),--emnist-root $(EMNIST_ROOT))

evaluate: $(VENV)/ready ## score MODEL on the test images, as they are and in every style of users' pictures; needs EMNIST_ROOT
	@mkdir -p build
	@EMNIST_ROOT=$(EMNIST_ROOT) $(PY) -m training.evaluate $(MODEL) --sheets build

compare: $(COMPARE_VENV)/ready ## MODEL beside Tesseract (from the system) and RapidOCR, on the same pictures; needs EMNIST_ROOT
	@EMNIST_ROOT=$(EMNIST_ROOT) $(COMPARE_VENV)/bin/python -m benchmarks.readers --model $(MODEL)

bench: $(VENV)/ready ## time preparation, network and batch against their limits
	@$(PY) -m benchmarks.parts --model $(MODEL)

test: $(VENV)/ready ## the tests that need nothing but .venv, in TEST_PROCESSES
	@mkdir -p build
	@$(PY) -m pytest --numprocesses $(TEST_PROCESSES) --dist loadgroup --timeout 180 --cov --cov-report= --cov-fail-under 80

test-slow: $(VENV)/ready ## the slow tests; some need EMNIST_ROOT
	@EMNIST_ROOT=$(EMNIST_ROOT) $(PY) -m pytest -m slow

browser-test: $(VENV)/ready ## try the drawing page in a Chromium: that of CHROMIUM or of the PATH
	@CHROMIUM=$(CHROMIUM) $(PY) -m pytest -m browser serving

conformance-test: $(VENV)/ready $(TRITON_VENV)/ready ## our Open Inference Protocol beside a Triton server's, which comes in an environment of its own
	@$(PY) -m pytest -m conformance serving

set-version: ## write VERSION (three numbers) into pyproject.toml, manifests, overlays and serving/service/openapi.yaml
	@printf '%s\n' '$(VERSION)' | grep -Eqx '[0-9]+[.][0-9]+[.][0-9]+' \
	  || { echo "VERSION must be three numbers, such as 0.2.0, and not '$(VERSION)'" >&2; exit 1; }
	@find k8s overlays pyproject.toml serving/service/openapi.yaml -type f ! -path '*/tests/*' ! -name '*.md' -exec sed -i.before -E \
	  -e 's/^(version = ")[0-9.]+"$$/\1$(VERSION)"/' -e 's/^(  version: )[0-9.]+$$/\1$(VERSION)/' \
	  -e 's/(image: emnist-[a-z]+:|newTag: )[0-9]+[.][0-9]+[.][0-9]+/\1$(VERSION)/' {} +
	@find k8s overlays serving pyproject.toml.before -name '*.before' -delete

images: images-serve images-train ## build emnist-serve, emnist-batch and emnist-train

# An image for a GPU has a tag of its own, so that both can be at hand.
SERVE_TAG := $(VERSION)$(if $(filter gpu,$(DEVICE)),-gpu)
TRAIN_TAG := $(VERSION)$(if $(filter cpu,$(TRAIN_DEVICE)),-cpu)
# The names of an image: `latest` is the one whose tag is the version alone, and none of its variants.
names      = -t $(1):$(2)$(if $(filter $(VERSION),$(2)), -t $(1):latest)
BUILD      = $(DOCKER) build $(DOCKER_BUILD_FLAGS) --build-arg VERSION=$(VERSION) --build-arg TORCH_INDEX=$(TORCH_INDEX)

images-serve: ## build emnist-serve and emnist-batch, with MODEL in them
	$(BUILD) --build-arg MODEL=$(MODEL) --build-arg DEVICE=$(DEVICE) -f Dockerfile.serve --target batch $(call names,$(IMAGE_PREFIX)-batch,$(SERVE_TAG)) .
	$(BUILD) --build-arg MODEL=$(MODEL) --build-arg DEVICE=$(DEVICE) -f Dockerfile.serve --target serve $(call names,$(IMAGE_PREFIX)-serve,$(SERVE_TAG)) .

images-train: ## build emnist-train; TRAIN_DEVICE=cpu: its twin without CUDA
	$(BUILD) --build-arg DEVICE=$(TRAIN_DEVICE) -f Dockerfile.train $(call names,$(IMAGE_PREFIX)-train,$(TRAIN_TAG)) .

load-images: images-serve ## bring the images onto the nodes by LOAD_IMAGE, for instance LOAD_IMAGE="kind load docker-image"
	@$(if $(LOAD_IMAGE),,echo "LOAD_IMAGE is empty: the nodes must find $(IMAGE_PREFIX)-serve:$(SERVE_TAG) and -batch by themselves")
	$(if $(LOAD_IMAGE),$(LOAD_IMAGE) $(IMAGE_PREFIX)-serve:$(SERVE_TAG))
	$(if $(LOAD_IMAGE),$(LOAD_IMAGE) $(IMAGE_PREFIX)-batch:$(SERVE_TAG))

load-train: images-train ## bring the training image onto the nodes by LOAD_IMAGE; TRAIN_DEVICE=cpu: without CUDA
	$(if $(LOAD_IMAGE),$(LOAD_IMAGE) $(IMAGE_PREFIX)-train:$(TRAIN_TAG))

train-container: images-train ## train RECIPE in the container, on a GPU, into the volume `out`; EMNIST comes into the volume `data`
	$(DOCKER) run --rm $(if $(filter gpu,$(TRAIN_DEVICE)),--gpus all) -v data:/data -v out:/out $(IMAGE_PREFIX)-train:$(TRAIN_TAG) --recipe $(RECIPE) --name $(NAME)

# A ReadWriteOnce volume serves one node at a time, so the model travels by way of this machine, in an image of its own tag.
PUBLISHED := runs/published/emnist.pt
publish: $(VENV)/ready ## bring the model of the finished training Job NAME to the service, which rolls without loss; LOAD_IMAGE as above
	kubectl apply -k $(OVERLAYS)/train-files
	@mkdir -p $(dir $(PUBLISHED))
	kubectl -n emnist wait --for=condition=Ready pod/emnist-train-files --timeout=5m \
	  && kubectl -n emnist exec emnist-train-files -- cat /out/$(NAME)/emnist.pt > $(PUBLISHED); \
	  status=$$?; kubectl -n emnist delete pod emnist-train-files; exit $$status
	version=$$($(PY) -c "from handlers.recognizer import Recognizer; print(Recognizer('$(PUBLISHED)').version)") \
	  && $(MAKE) roll-out MODEL=$(PUBLISHED) SERVE_TAG=$(SERVE_TAG)-$$version

roll-out: load-images ## the service and the next batch runs get images with MODEL in them, one pod after the other
	kubectl -n emnist set image deployment/emnist '*=$(IMAGE_PREFIX)-serve:$(SERVE_TAG)'
	kubectl -n emnist set image cronjob/emnist-batch '*=$(IMAGE_PREFIX)-batch:$(SERVE_TAG)'
	kubectl -n emnist rollout status deployment/emnist --timeout=10m

TEST_IMAGES = IMAGE_PREFIX="$(IMAGE_PREFIX)" VERSION="$(VERSION)" DOCKER="$(DOCKER)"

container-test: $(VENV)/ready images-serve ## build and try the images; the training image as its CPU twin
	$(MAKE) images-train TRAIN_DEVICE=cpu
	@$(TEST_IMAGES) $(PY) -m pytest -m container k8s

cluster-test: $(VENV)/ready load-images ## try everything on the cluster of the current context, in the namespace emnist
	$(MAKE) load-train TRAIN_DEVICE=cpu
	@$(TEST_IMAGES) $(PY) -m pytest -m cluster k8s

# An upgrade needs another version: the same network under another name.
chaos-test: $(VENV)/ready load-images ## faults, overload, scaling and the batch program at scale on that cluster (an hour); KILL_NODE: a command that takes the node away that it is given
	$(DOCKER) build $(DOCKER_BUILD_FLAGS) --build-arg IMAGE=$(IMAGE_PREFIX)-serve:$(VERSION) -f k8s/tests/Dockerfile.other -t $(IMAGE_PREFIX)-serve:$(VERSION)-other k8s/tests
	$(if $(LOAD_IMAGE),$(LOAD_IMAGE) $(IMAGE_PREFIX)-serve:$(VERSION)-other)
	@$(TEST_IMAGES) KILL_NODE="$(KILL_NODE)" $(PY) -m pytest -m chaos k8s

load-test: $(VENV)/ready ## send pictures to HOST as USERS in a SHAPE for RUN_TIME; report in build/load-test.html and build/load-test_*.csv
	@mkdir -p build
	@$(VENV)/bin/locust --headless --only-summary -f load_tests/locustfile.py --host $(HOST) --users $(USERS) --run-time $(RUN_TIME) \
	  --shape $(SHAPE) --html build/load-test.html --csv build/load-test

sweep: mar ## measure workers, batch size and delay, and 1 to 64 users (minutes)
	@$(PY) benchmarks/sweep.py

bench-serving: $(VENV)/ready $(PEERS_VENV)/ready ## MODEL served by us beside FastAPI, LitServe, BentoML and the limit, each tuned (20 minutes); also in build/bench-serving.md
	@$(PY) -m benchmarks.servers --model $(MODEL)

check: $(VENV)/ready ## lint, format, types, Dockerfiles and manifests; only reports
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(VENV)/bin/hadolint Dockerfile.train Dockerfile.serve k8s/tests/Dockerfile.other
	@$(VENV)/bin/yamllint --strict .

check-manifests: $(LINT_VENV)/ready ## checkov over the manifests and the Dockerfiles, in an environment of its own
	@$(LINT_VENV)/bin/checkov --config-file .checkov.yaml

format: $(VENV)/ready ## fix what ruff can fix
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

clean: ## remove the environments and what was built; runs/ stays
	rm -rf $(VENV) $(TRAIN_VENV) $(LINT_VENV) $(COMPARE_VENV) $(PEERS_VENV) $(TRITON_VENV) build .pytest_cache .mypy_cache .ruff_cache

# Torch comes first, alone and without what it depends on: only it is looked for in the CPU index, which keeps the gigabytes
# of CUDA away; an index that cannot be reached costs seconds for every package that is looked for in it.
$(VENV)/ready: $(addprefix requirements/,torch.txt batch.txt serve.txt train-cpu.txt dev.txt)
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

$(COMPARE_VENV)/ready: requirements/torch.txt requirements/compare.txt
	@echo "installing the environment $(COMPARE_VENV)"
	@$(PYTHON) -m venv $(COMPARE_VENV)
	@$(COMPARE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements/torch.txt
	@$(COMPARE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/torch.txt -r requirements/compare.txt
	@$(COMPARE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps rapidocr-onnxruntime==1.4.4
	@touch $@

$(TRITON_VENV)/ready: requirements/triton.txt
	@echo "installing the environment $(TRITON_VENV)"
	@$(PYTHON) -m venv $(TRITON_VENV)
	@$(TRITON_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/triton.txt
	@touch $@

$(PEERS_VENV)/ready: requirements/torch.txt requirements/batch.txt requirements/peers.txt
	@echo "installing the environment $(PEERS_VENV)"
	@$(PYTHON) -m venv $(PEERS_VENV)
	@$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements/torch.txt
	@$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/torch.txt -r requirements/peers.txt
	@touch $@

$(LINT_VENV)/ready: requirements/lint.txt
	@echo "installing the environment $(LINT_VENV)"
	@$(PYTHON) -m venv $(LINT_VENV)
	@$(LINT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/lint.txt
	@touch $@
