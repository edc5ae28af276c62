# Every target makes .venv and installs into it first, where that is not done yet.

PYTHON ?= python3
OUT ?= demo

# OpenMP threads that wait without spinning: beside other processes, spinning ones slow training on the CPU many times.
export OMP_WAIT_POLICY ?= PASSIVE

# Containers often set it. Then every process compiles what it imports anew, which takes nnU-Net 11 s at each start.
unexport PYTHONDONTWRITEBYTECODE

# Tests run beside each other, each file in one of so many processes; in the order of their names, so that none of the
# files with few and long tests comes last.
JOBS ?= 2

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
INSTALLED := .venv/installed

.PHONY: demo test test-slow test-slurm lint docs release-check bench bench-gpu bench-nnunet constraints clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/nnunet-godc demo --out "$(OUT)"

test: $(INSTALLED)
	$(PYTEST) -m "not slow and not slurm"

test-slow: $(INSTALLED)
	$(PYTEST) -m "slow and not slurm"

# Needs a Slurm cluster; as root, `.ci/slurm make test-slurm` starts one for it.
test-slurm: $(INSTALLED)
	$(BIN)/python -m pytest -m slurm

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The pages lie in site/. A warning is an error.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Before a release: the wheel in a fresh environment for each Python at hand, or for those that PYTHONS names. Some minutes each.
release-check: $(INSTALLED)
	.ci/release-check

bench: $(INSTALLED)
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/deform_conv.py
	$(BIN)/python benchmarks/conversion.py
	$(BIN)/python benchmarks/compression.py

# Where nnU-Net is not installed: python3 benchmarks/gpu.py
bench-gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py

# Every trainer through nnU-Net's own commands on a GPU.
bench-nnunet: $(INSTALLED)
	$(BIN)/python benchmarks/training_gpu.py

# Renews every pinned version; commit what it writes.
constraints: $(INSTALLED)
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --extra dev \
		--custom-compile-command "make constraints" --no-annotate --output-file constraints.txt pyproject.toml

clean:
	rm -rf .venv build dist site *.egg-info

$(INSTALLED): pyproject.toml setup.py nnunet_godc.pth constraints.txt
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "$(PYTHON) is not to be found: install Python 3.10 to 3.13, or name it, as in 'make test PYTHON=/path/to/python3'." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$$("$(PYTHON)" --version 2>&1) is too old: name a Python 3.10 to 3.13, as in 'make test PYTHON=python3.11'." >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian and Ubuntu: apt-get install python3-venv)." >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	UV_HTTP_TIMEOUT=300 $(BIN)/uv pip install --python $(BIN)/python \
		--constraint constraints.txt --build-constraint constraints.txt --editable '.[dev]'
	@touch $@
