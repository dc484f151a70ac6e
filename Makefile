# make setup   the environment with everything that the tests need
# make run     the search on the embedded model; ARGS="pruner=magnitude seed=1" adds options
# make smollm2 the search on a real language model, SmolLM2-135M-Instruct, which it fetches; ARGS as above
# make test    lint, format, types and tests; ARGS="-k wanda -x" goes to pytest
# make docs    the manual as a site, in docs/_build
#
# PYTHON=python3.12 chooses the interpreter, VENV=folder the environment, PIP_ARGS="..." adds options for pip (an index, say).

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
ARGS ?=

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --prefer-binary --no-compile -c constraints.txt $(PIP_ARGS)
CREATED := $(VENV)/.created
RUNTIME := $(VENV)/.runtime-installed
DEVELOPMENT := $(VENV)/.development-installed

# pip would compile 18,000 files, most of which nothing imports. Left to Python's own cache, the first import compiles the few that count;
# so the cache must be allowed, and a set-up for tests ends by looking for them, since workers would each compile all for themselves.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup run smollm2 test docs
.NOTPARALLEL:

setup: $(DEVELOPMENT)

run: $(RUNTIME)
	$(BIN)/python -m selfprune $(ARGS)

smollm2: $(RUNTIME)
	@$(BIN)/python -c "import gguf" 2>/dev/null || $(INSTALL) --no-build-isolation -e '.[gguf]'
	$(BIN)/python experiments/smollm2/prepare.py
	$(BIN)/python -m selfprune +experiment=smollm2 $(ARGS)

test: $(DEVELOPMENT)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	MYPY_NUM_WORKERS=2 $(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder $(ARGS)

docs: $(DEVELOPMENT)
	$(BIN)/python -m sphinx -W --keep-going docs docs/_build

# A current pip resolves in half the time, and source packages build faster with the tools at hand than each in an environment of its own.
$(CREATED): constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "selfprune needs Python 3.10 or newer, got $$($(PYTHON) --version 2>&1); name one that you have, such as: make $(firstword $(MAKECMDGOALS) setup) PYTHON=python3.12" >&2; \
	    exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) pip setuptools hatchling
	@touch $@

$(RUNTIME): $(CREATED) pyproject.toml
	@echo "Installing what selfprune needs to run into $(VENV); this takes a minute or two."
	$(INSTALL) --no-build-isolation -e .
	@touch $@

$(DEVELOPMENT): $(CREATED) pyproject.toml
	@echo "Installing what selfprune needs to run and to be tested into $(VENV); this takes a minute or two."
	$(INSTALL) --no-build-isolation -e '.[dev]'
	-@$(BIN)/python -m pytest --collect-only --quiet > /dev/null
	@touch $(RUNTIME) $@
