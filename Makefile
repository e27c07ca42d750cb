# `make search` and `make test` need nothing but Python 3.11+ and make: they make .venv and install into it first.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: search test test-fast lint clean

search: $(STAMP)  ## search a space on the embedded data set (about three minutes on two cores)
	$(RUN) -m search.run --space scale_card_depth

test: $(STAMP)  ## all tests that this machine can run
	$(RUN) -m pytest

test-fast: $(STAMP)  ## without the slow ones
	$(RUN) -m pytest -m "not slow"

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,onnx]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
