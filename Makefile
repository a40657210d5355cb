# make demo and make test set up all they need in .venv; nothing else is touched.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test quick zoo check format clean

demo: .venv/ready
	$(BIN)/guidefold demo

test: .venv/ready
	$(PYTEST) $(ZOO)

# What needs no more than a second or two a file.
quick: .venv/ready
	$(PYTEST) --quick

# Every pipeline of the zoo; make test walks some that together have every feature of all.
zoo: .venv/ready
	$(PYTEST) --whole-zoo tests/zoo

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Versions are pinned: what constraints.txt names is what was tested.
.venv/ready: pyproject.toml constraints.txt
	@echo "Setting up .venv (once; a few minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
