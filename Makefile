PYTHON ?= python3
BIN := .venv/bin
SOURCES := setup.py pyproject.toml $(wildcard fastxent/*.pyx fastxent/*.pxi fastxent/*.h)

ASV := $(BIN)/asv
# One call of each benchmark at two of the shapes, in forks of one process; what has forked has one thread.
QUICK := --quick --launch-method forkserver -b 'Shapes.*(small batch|ImageNet)' -b Memory -b 'tracks\.'

.PHONY: demo test lint format bench bench-full bench-compare bench-instructions clean

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

bench: .venv/.dev .venv/.machine  ## that every benchmark runs, on what is installed; times are not kept
	$(ASV) run --python same $(QUICK)

bench-full: .venv/.dev .venv/.machine  ## all of them, on the last commit in an environment of its own
	$(ASV) run 'HEAD^!'

bench-compare: .venv/.dev .venv/.machine  ## is the last commit slower than BASE?
	$(BIN)/python -m benchmarks.compare $(or $(BASE),HEAD~1)

bench-instructions: .venv/.dev  ## does any fixed call take more instructions than stored?
	$(BIN)/python -m benchmarks.instructions

.venv/.machine: .venv/.dev
	$(ASV) machine --yes
	touch $@

# The package with one extra, compiled; done again when something that the build reads has changed.
.venv/.%: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[$*]'
	touch $@

clean:  ## everything that the other targets made
	rm -rf .venv .asv build fastxent/*.c fastxent/*.so fastxent.egg-info
