PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
READY := $(VENV)/.ready
TESTED := $(VENV)/.tested

.PHONY: demo test test-all lint interpreted gpu docs wheel

# An environment with exact versions and what the demo needs; it is made again when they change.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[eval]"
	touch $@

# The same environment with what the tests need.
$(TESTED): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,torchao]"
	touch $@

demo: $(READY)
	$(BIN)/dit-accel render "a red circle moving up on a navy background" \
		--size show --preset balanced \
		--compare -o out/demo.mp4 --report out/demo.json

lint: $(TESTED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests/support/verbs_script.py

# Triton chooses its interpreter when it is imported, so these tests run in their own process.
interpreted: $(TESTED)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpreted

# One process per core with one thread each, because the models are too small for two threads.
test: $(TESTED) lint interpreted
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

# This also writes which combinations of methods, precisions, guidance, batches and features were run.
test-all: $(TESTED) lint interpreted
	$(BIN)/python -m pytest --all --matrix eval/results/composition.md

# Run what needs a GPU and is not measured yet; eval/results/README.md lists it.
gpu:
	@test -n "$(OUT)" || { echo "error: no folder for the results: make gpu OUT=dir"; exit 2; }
	$(PYTHON) assets/gpu.py --out "$(OUT)"

# The site, in an environment without torch: the command line and the docstrings are read without it.
docs:
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-docs/bin/python -m pip install --quiet --constraint constraints.txt --requirement docs/requirements.txt
	$(VENV)-docs/bin/python -m pip install --quiet --no-deps --editable .
	$(VENV)-docs/bin/mkdocs build --strict --quiet

# The packages for a release, in an environment without torch: the wheel is built from the sdist.
wheel:
	$(PYTHON) -m venv $(VENV)-build
	$(VENV)-build/bin/python -m pip install --quiet --upgrade pip
	$(VENV)-build/bin/python -m pip install --quiet --constraint constraints.txt build twine
	rm -rf dist
	$(VENV)-build/bin/python -m build
	$(VENV)-build/bin/twine check --strict dist/*
