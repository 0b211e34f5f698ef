# Every verb makes its own virtual environment first; CI calls the same verbs (.ci/run).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help demo test system slow test-all breakages fuzz kernels portable asan tsan amx gpu emulate docs lint format overhead bench models clean
help:  ## these lines
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 12

$(BIN)/.built: requirements.txt pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.* build_tools/*.py)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable .
	touch $@

$(BIN)/.installed: $(BIN)/.built requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

demo: $(BIN)/.built  ## feature maps of two photographs, and a CNN trained with torch's layers and with ours: pictures in demo/
	$(BIN)/python -m torchconv
	$(BIN)/python examples/feature_maps.py --out demo
	$(BIN)/python examples/digits.py --out demo

# A process of one thread for each core; then the tests that need threads, alone.
PYTEST := $(BIN)/python -m pytest
PARALLEL := --numprocesses auto --dist worksteal
test: $(BIN)/.installed  ## the tests, but for those of the next two lines
	OMP_NUM_THREADS=1 $(PYTEST) tests -m "not slow and not threads and not system" $(PARALLEL)
	OMP_NUM_THREADS=1 $(PYTEST) README.md docs --numprocesses auto --dist loadfile
	$(PYTEST) tests/test_runtime.py -m "threads and not slow"

system: $(BIN)/.installed  ## the tests that run whole programs: builds, examples, the documentation site
	OMP_NUM_THREADS=1 $(PYTEST) -m "system and not slow" $(PARALLEL)

slow: $(BIN)/.installed  ## the slow tests
	$(PYTEST) -m slow

test-all: test system slow  ## all tests

breakages: $(BIN)/.installed  ## break the kernels on purpose, one way at a time: which tests fail?
	$(BIN)/python tests/breakages.py build
	$(BIN)/python tests/breakages.py run

SECONDS ?= 600
SEED ?= 0
fuzz: $(BIN)/.installed  ## random problems on every implementation, compared with torch: make fuzz SECONDS=600 SEED=0
	$(BIN)/python tests/fuzz.py --seconds $(SECONDS) --seed $(SEED)

kernels: $(BIN)/.installed  ## the kernels without Python, each tensor at the edge of a page
	$(BIN)/python tests/native/run.py plain

portable: $(BIN)/.installed  ## the portable kernels, and those for AMX on emulated tiles, without Python, under AddressSanitizer and UBSan
	$(BIN)/python tests/native/run.py portable

asan: $(BIN)/.installed  ## all kernels, and all tests but the slow ones, under AddressSanitizer and UBSan
	$(BIN)/python tests/native/run.py asan
	$(BIN)/python tests/native/suite.py asan -m "not slow"

tsan: $(BIN)/.installed  ## the threads of the kernels under ThreadSanitizer
	$(BIN)/python tests/native/run.py tsan

amx: $(BIN)/.installed  ## the tests of the implementation for AMX, on emulated tiles
	OMP_NUM_THREADS=1 $(BIN)/python tests/native/suite.py amx tests -k amx -m "not slow and not threads and not system" $(PARALLEL)

gpu: $(BIN)/.installed  ## the kernels for a GPU, on an emulated one
	$(BIN)/python tests/native/run.py gpu

emulate: $(BIN)/.installed  ## the kernels on other processors (needs qemu-user, valgrind, g++-aarch64-linux-gnu)
	$(BIN)/python tests/native/run.py avx512
	$(BIN)/python tests/native/run.py x86
	$(BIN)/python tests/native/run.py aarch64
	$(BIN)/python tests/native/run.py valgrind

docs: $(BIN)/.installed  ## the documentation as a site: build/docs/index.html
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs

lint: $(BIN)/.installed  ## ruff, mypy --strict, clang-format
	ruff check .
	ruff format --check .
	mypy
	clang-format --dry-run --Werror $$(git ls-files 'csrc/*' 'tests/native/*.cpp' 'tests/native/*.h' 'tests/emulation/*.h')

format: $(BIN)/.installed  ## fix what lint finds, where a tool can
	ruff check --fix .
	ruff format .
	clang-format -i $$(git ls-files 'csrc/*' 'tests/native/*.cpp' 'tests/native/*.h' 'tests/emulation/*.h')

overhead: $(BIN)/.installed  ## the overhead of a call, compared with torch.nn.Conv2d
	$(BIN)/python benchmarks/overhead.py

bench: $(BIN)/.installed  ## every layer of the networks, compared with torch: benchmarks/results/, the table of docs/speed.md, a plot
	$(BIN)/python benchmarks/bench.py --out benchmarks/results/bench --page docs/speed.md --plot docs/images/benchmark.png

models: $(BIN)/.installed  ## whole networks of torchvision, compared with torch: benchmarks/results/
	$(BIN)/python -m pip install --quiet --no-deps torchvision==0.28.0
	$(BIN)/python benchmarks/bench_models.py --out benchmarks/results/models --plot docs/images/networks.png

clean:  ## everything that was built
	rm -rf $(VENV) build build-* demo *.egg-info torchconv/*.so
