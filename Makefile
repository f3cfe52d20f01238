PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py pyproject.toml $(wildcard fastxent/*.pyx fastxent/*.pxi fastxent/*.h)

.PHONY: demo test lint format clean

demo: .venv/.demo  ## train on handwritten digits
	$(BIN)/fastxent demo

test: .venv/.test  ## the whole test suite, docstring examples included
	$(BIN)/pytest -n auto

lint: .venv/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev  ## what lint asks for, where a tool can do it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The package with one extra, compiled; done again when something that the build reads has changed.
.venv/.%: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[$*]'
	touch $@

clean:  ## everything that the other targets made
	rm -rf .venv build fastxent/*.c fastxent/*.so fastxent.egg-info
