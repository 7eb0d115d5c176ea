# Everything runs in .venv, made on first use. PYTHON chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin
# OpenMP threads that wait without spinning: many times faster where the processors are shared with other work
export OMP_WAIT_POLICY := PASSIVE
RUN := cd bundle && $(BIN)/python -m monai.bundle run
DEMO := $(abspath demo_output)
CASE := patient022
# MONAI Label has an environment of its own; Python 3.11 (it needs parts of the library that 3.12 and 3.13 dropped)
LABEL := .venv-label
LABEL_PORT ?= 8000
LABEL_PYTHON ?= $(shell command -v python3.11 || echo $(PYTHON))

# processes that share the tests, one thread each
JOBS ?= 2

# of `make attack`
MINUTES ?= 120

.PHONY: install install-label demo test test-long lint clean clean-label-demo label-demo test-label attack

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	rm -rf $(DEMO)
	$(RUN) training --config_file "['configs/train.yaml','configs/demo.yaml']" --output_dir $(DEMO)
	$(RUN) reporting --config_file "['configs/train.yaml','configs/evaluate.yaml']" --output_dir $(DEMO)
	$(RUN) --config_file configs/inference.yaml --dataset_dir data/phantom/images/$(CASE).nii.gz \
	  --ckpt_path $(DEMO)/model_best.pt --output_dir $(DEMO)
	cd bundle && $(BIN)/python -m scripts overlay --image data/phantom/images/$(CASE).nii.gz \
	  --prediction $(DEMO)/$(CASE)_seg.nii.gz --truth data/phantom/labels/$(CASE).nii.gz --output $(DEMO)/overlay.png \
	  --class_names "['background','right ventricle','myocardium','left ventricle']"
	@echo
	@echo "model:   demo_output/model_best.pt (best on validation)"
	@echo "scores:  demo_output/scores.csv, demo_output/scores.json (8 test patients)"
	@echo "report:  demo_output/report/index.html"
	@echo "picture: demo_output/overlay.png"

# a file of tests stays with one process: what it trains, it trains once
test: lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope --no-loadscope-reorder

test-long: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow --timeout 7200

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m compileall -q bundle/scripts algo_template label_app tests benchmarks

$(LABEL)/.installed: label_app/requirements.txt label_app/requirements-nodeps.txt
	$(LABEL_PYTHON) -m venv $(LABEL)
	$(LABEL)/bin/python -m pip install --quiet --requirement label_app/requirements.txt
	$(LABEL)/bin/python -m pip install --quiet --no-deps --requirement label_app/requirements-nodeps.txt
	touch $@

install-label: $(LABEL)/.installed

label-demo: $(LABEL)/.installed
	$(LABEL)/bin/python label_app/demo.py --port $(LABEL_PORT)

test-label: $(LABEL)/.installed
	$(LABEL)/bin/python -m pip install --quiet --constraint constraints.txt pytest pytest-timeout
	$(LABEL)/bin/python -m pytest tests/label

# of the running app, from this machine: benchmarks/RELIABILITY.md says what came out
attack: $(LABEL)/.installed
	$(LABEL)/bin/python tests/label/attack.py --minutes $(MINUTES)

clean:
	rm -rf $(VENV) $(DEMO) $(LABEL)

# with the labels that were drawn in it
clean-label-demo:
	rm -rf label_demo
