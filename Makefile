# A new user needs two commands: `make demo`, then `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Extra arguments for the step that installs torch, e.g. an index with builds for your accelerator.
TORCH_ARGS ?=
# Bytecode is compiled on first import; compiling everything during installation would add 100 MB.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

# The number of processes that share the test files, slow files first (tests/conftest.py).
WORKERS ?= 2
SHARE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-fast test-full lint format docs bench lock clean

demo: $(VENV)/installed
	$(BIN)/ilrm demo -o outputs/demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(SHARE)

test-fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest $(SHARE) -m "not slow"

# The checks that `make test` does in small form.
test-full: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) -m full

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages of docs/ as a site in build/site. A broken link is an error.
docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/installed-dev
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

# The versions that users and tests get. UPGRADE= keeps those that still fit.
UPGRADE ?= --upgrade
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv
	build/lock/bin/python .ci/lock.py $(UPGRADE)

# torch goes first, alone and pinned. Otherwise the resolver may pick a release with gigabytes of CUDA libraries.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_ARGS) torch
	$(PIP) -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build outputs .pytest_cache .ruff_cache
