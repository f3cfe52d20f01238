PYTHON ?= python3
BIN := .venv/bin
# Python's modules that are compiled.
HOST := $(shell sed -n '/^HOST = /,/^]/p' setup.py | grep -o '[a-z_]*"' | tr -d '"')
SOURCES := setup.py pyproject.toml $(wildcard fastxent/*.pyx fastxent/*.pxi fastxent/*.h) $(HOST:%=fastxent/%.py)

ASV := $(BIN)/asv
# One call of every function at one shape, and of every other benchmark, in forks of one process with one thread.
QUICK := --quick --launch-method forkserver -b 'Shapes.*small batch' -b "(Types|Memory|Accuracy).*'cross_entropy'" \
	-b 'Limit.*ImageNet' -b Overhead -b Start

# Sanitizers: those of addresses and undefined behaviour for the compiled kernels, in a build of their own; that of
# threads for the team alone. Left out are tests that measure time or memory, compile, or run other programs.
SANITIZED := build/sanitized
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined
UNSANITIZED := bench cli dashboard environment examples interrupts large leaks memory vectorisation
EMULATED := tests/test_published.py tests/test_semantics.py
PRELOAD = $(shell gcc -print-file-name=libasan.so):$(shell gcc -print-file-name=libstdc++.so)

.PHONY: demo test test-large emulate lint format bench bench-full bench-compare bench-instructions bench-planted \
	bench-publish bench-preview sanitize fuzz mutants clean

demo: .venv/.demo  ## train on handwritten digits
	$(BIN)/fastxent demo

# A file's tests in one process: what they compile is compiled once.
test: .venv/.test  ## the whole test suite, docstring examples included
	$(BIN)/pytest -n auto --dist loadfile

test-large: .venv/.test  ## more than 2**31 numbers that are all in memory: 5 GB
	FASTXENT_LARGE=1 $(BIN)/pytest tests/test_large.py

emulate: .venv/.test  ## on processors without AVX2 and without AVX-512; needs qemu-x86_64
	for cpu in Nehalem Haswell; do qemu-x86_64 -cpu $$cpu $(BIN)/python -m pytest -k cython $(EMULATED) || exit 1; done
	NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES= $(BIN)/pytest -k numba tests/test_accuracy.py

lint: .venv/.dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sanitize: .venv/.test  ## the tests of compiled code under GCC's sanitizers
	mkdir -p $(SANITIZED)
	gcc -O2 -g -fsanitize=thread -pthread -Ifastxent tests/team.c -o $(SANITIZED)/team
	$(SANITIZED)/team
	CC=gcc CFLAGS="$(SANITIZE) -fno-omit-frame-pointer -g1" LDFLAGS="$(SANITIZE)" \
		$(BIN)/python setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	LD_PRELOAD=$(PRELOAD) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/python -m pytest -n auto -o pythonpath=$(SANITIZED)/lib -k "not numba" tests \
		$(UNSANITIZED:%=--ignore=tests/test_%.py)

fuzz: .venv/.test  ## any calls of any function, on every build of the kernels, for SECONDS
	$(BIN)/python tests/fuzz.py --seconds $(or $(SECONDS),600)

mutants: .venv/.test  ## which small faults in the code do the tests not notice?
	$(BIN)/python tests/mutations.py

format: .venv/.dev  ## what lint asks for, where a tool can do it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.dev .venv/.machine  ## that every benchmark runs, on what is installed; times are not kept
	$(ASV) check --python same
	$(ASV) run --python same $(QUICK)

bench-full: .venv/.dev .venv/.machine  ## all of them, on the last commit in an environment of its own
	$(ASV) run 'HEAD^!'

bench-compare: .venv/.dev  ## is the last commit slower, hungrier or less accurate than BASE?
	$(BIN)/python -m benchmarks.compare $(or $(BASE),HEAD~1)

bench-instructions: .venv/.dev  ## does any fixed call take more instructions than stored?
	$(BIN)/python -m benchmarks.instructions

bench-planted: .venv/.dev  ## do the two before catch regressions that are planted for them?
	$(BIN)/python -m benchmarks.planted

bench-publish: .venv/.dev  ## the results' dashboard, into .asv/html
	$(BIN)/python -m benchmarks.publish

bench-preview: bench-publish  ## the same, served to this machine alone
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory .asv/html 8080

.venv/.machine: .venv/.dev
	$(ASV) machine --yes
	touch $@

# The package with one extra, compiled; done again when something that the build reads has changed. `dev` includes `test`.
.venv/.%: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[$*]'
	touch $@ $(patsubst %/.dev,%/.test,$@)

clean:  ## everything that the other targets made
	rm -rf .venv .asv build fastxent/*.c fastxent/*.so fastxent.egg-info
