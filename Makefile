# `make search` and `make test` need nothing but Python 3.11+ and make: they make .venv and install into it first.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# `make test-lowest EXTRAS=test,onnx` tries the extra `onnx` too, which needs a newer PyTorch.
EXTRAS ?= test
LOWEST := .venv-lowest/$(EXTRAS)

# One worker a core. A worker that shares a server (Ray, PostgreSQL) keeps all tests of it (tests/conftest.py).
PYTEST = $(RUN) -m pytest -n auto --dist loadgroup
# Tests that train: their kernels differ between CPUs with and without AVX-512.
TRAINING := tests/trainers tests/res2net/deploy/test_optimize.py $(addprefix tests/res2net/test_,elastic.py model.py) \
	$(addprefix tests/search/test_,checkpoints.py export.py run_cli.py supernet.py)

.PHONY: search test test-fast test-avx2 test-lowest lint types docs clean

search: $(STAMP)  ## search a space on the embedded data set (about three minutes on two cores)
	$(RUN) -m search.run --space scale_card_depth

test: $(STAMP)  ## all tests that this machine can run
	$(PYTEST)

test-fast: $(STAMP)  ## without the slow ones
	$(PYTEST) -m "not slow"

test-avx2: $(STAMP)  ## the tests that train, with the kernels of a CPU without AVX-512
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) $(TRAINING)

test-lowest: RUN := $(LOWEST)/bin/python
test-lowest: $(LOWEST)/.installed  ## the fast tests, with the lowest versions of the dependencies that pyproject.toml accepts
	$(PYTEST) -m "not slow"

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(STAMP)  ## what pyproject.toml includes
	$(VENV)/bin/pyright --pythonpath $(RUN)

docs: $(STAMP)  ## the documentation, into docs/_build; warnings are errors
	$(RUN) -m sphinx -W --keep-going -q docs docs/_build

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,onnx,docs]'
	touch $@

$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) .venv-lowest build docs/_build *.egg-info .pytest_cache .ruff_cache
