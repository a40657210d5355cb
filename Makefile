# make demo and make test set up all they need in .venv; nothing else is touched.
PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
# The versions: constraints.txt is what was tested; CONSTRAINTS=lowest, the oldest that are supported,
# has an environment of its own.
SUFFIX := $(addprefix -,$(CONSTRAINTS))
VENV := .venv$(SUFFIX)
PINS := constraints$(SUFFIX).txt
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick zoo package docs check format clean

demo: $(VENV)/ready
	$(BIN)/guidefold demo

test: $(VENV)/ready
	$(PYTEST) $(ZOO)

# What needs no more than a second or two a file.
quick: $(VENV)/ready
	$(PYTEST) --quick

# Every pipeline of the zoo; make test walks some that together have every feature of all.
zoo: $(VENV)/ready
	$(PYTEST) --whole-zoo tests/zoo

# Source archive and wheel; the wheel is installed into an environment of its own and used there.
package: $(VENV)/ready
	rm -rf build dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(PYTHON) .ci/package.py dist $(PINS)

# The site, in site/: no network, no warning.
docs: $(VENV)/ready
	$(BIN)/zensical build --clean --strict

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/ready: pyproject.toml $(PINS)
	@echo "Setting up $(VENV) (once; a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c $(PINS) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .venv-lowest build dist site .cache src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
