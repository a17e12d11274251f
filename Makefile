PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2
READY := $(VENV)/.ready
TESTED := $(VENV)/.tested

.PHONY: demo test test-all lint interpreted gpu

# One environment with exact versions; made anew when they change.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

$(TESTED): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,torchao]"
	touch $@

demo: $(READY)
	$(BIN)/dit-accel render "a red circle moving up on a navy background" \
		--size show --method svg-ear --set density=0.1 --set refresh=2 --set schedule.dense_steps=0.16 \
		--compare -o out/demo.mp4 --report out/demo.json

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Triton's interpreter is chosen when triton is imported: a process of its own.
interpreted: $(READY)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/interpreted

# A process per core: the models are too small for two threads, and processes with two threads each wait for each other.
test: $(TESTED) lint interpreted
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

# Also writes which combinations of methods, precisions, guidance, batches and features were run.
test-all: $(TESTED) lint interpreted
	$(BIN)/python -m pytest --all --matrix eval/results/composition.md

# Everything a GPU is needed for and that is not done yet; see eval/results/README.md.
gpu:
	@test -n "$(OUT)" || { echo "error: say where results go: make gpu OUT=dir"; exit 2; }
	$(PYTHON) assets/gpu.py --out "$(OUT)"
