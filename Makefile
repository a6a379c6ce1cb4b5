# One command each; every target sets itself up on a fresh clone and repeats in seconds. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PEERS := build/peers-venv
EMULATED := build/emulated
LOG := build/log
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_CONSTRAINT := $(VENV)/constraints.txt
# torch's and ORT's threads spin against each other otherwise.
export OMP_WAIT_POLICY := PASSIVE
# Without bytecode each of the tests' many processes compiles the package again.
unexport PYTHONDONTWRITEBYTECODE

# Only one build at a time in a checkout, however many calls of make there are.
LOCKED = mkdir -p $(LOG); exec flock $(LOG)/lock $(MAKE) -s

# run NAME, COMMAND: one quiet line; the log's end if it fails.
define run
mkdir -p $(LOG)
printf '%-12s' '$(1)'; start=$$SECONDS
if ( $(2) ) >$(LOG)/$(1).log 2>&1; then printf '%d s\n' $$((SECONDS - start))
else printf 'failed; the end of $(LOG)/$(1).log:\n'; tail -n 40 $(LOG)/$(1).log; exit 1; fi
endef

.PHONY: venv build demo test test-all test-emulated bench bench-baseline bench-gate lint format gpu clean help FORCE

venv: ## the environment in .venv: torch first, then everything else
	@$(LOCKED) $(VENV)/deps.stamp

build: ## compile, and install editable into .venv
	@$(LOCKED) $(VENV)/build.stamp

demo: build ## MiniLM from torch to a verified int8 file, with the table; files in ./demo-output
	@$(BIN)/deepseek-fast demo --out demo-output $(ARGS)

test: build ## the CPU test suite
	@$(BIN)/pytest $(ARGS)

test-all: build ## `make test` and the slow tests
	@$(BIN)/pytest -m '' $(ARGS)

.PHONY: tools emulated
tools:
	@$(LOCKED) $(VENV)/tools.stamp

# Its lock is its own: it can run beside everything else.
emulated:
	@mkdir -p $(LOG)
	[ -e $(VENV)/tools.stamp ] || $(MAKE) tools
	exec flock $(LOG)/emulated.lock $(MAKE) -s $(EMULATED)/aarch64/build.ninja

test-emulated: build emulated ## numerics on CPUs that are not here: aarch64, x86-64 without AVX and with AVX2, AMX
	@$(BIN)/pytest -m '' tests/test_emulated.py tests/test_emulated_casts.py tests/test_emulated_convs.py \
	  tests/test_emulated_indexer.py tests/test_emulated_mla.py tests/test_aarch64_loops.py $(ARGS)

.PHONY: gpu-aot test-gpu-kernels
# Its cache: a kernel that has not changed is not compiled again.
export TRITON_CACHE_DIR := $(CURDIR)/build/triton
gpu-aot: build ## GPU kernels to machine code for six chips, without a GPU, and its gates
	@$(BIN)/python -m bench.gpu.aot --json build/gpu-aot.json $(ARGS)

.PHONY: gpu-cuda gpu-bundle
NVCC ?= $(shell command -v nvcc)
# The library of CUDA C++ kernels alone, beside the _C_core that the environment has.
gpu-cuda: build ## CUDA C++ kernels to machine code for five chips and PTX, without a GPU, and their gates
	@if [ -z "$(NVCC)" ]; then echo 'gpu-cuda: no nvcc; its checks are skipped'; exit 0; fi
	$(call run,cuda,CUDACXX=$(NVCC) PATH="$$PWD/$(BIN):$$PATH" cmake -S . -B build/cuda -G Ninja -D CMAKE_BUILD_TYPE=Release \
	  -D DSF_CUDA=ON -D DSF_CORE="$$(echo $$PWD/$(VENV)/lib/python3*/site-packages/deepseek_fast/_C_core.abi3.so)" \
	  -D Python_EXECUTABLE="$$PWD/$(BIN)/python" && PATH="$$PWD/$(BIN):$$PATH" cmake --build build/cuda)
	$(BIN)/python -m bench.gpu.cuda_library build/cuda/_C_torch_cuda.abi3.so

gpu-bundle: gpu-cuda ## what a GPU machine needs beside this tree, in build/gpu-bundle (bench/gpu/README.md)
	@mkdir -p build/gpu-bundle
	cp $(VENV)/lib/python3*/site-packages/deepseek_fast/_C_{core,torch}.abi3.so build/gpu-bundle
	[ ! -f build/cuda/_C_torch_cuda.abi3.so ] || cp build/cuda/_C_torch_cuda.abi3.so build/gpu-bundle
	$(BIN)/python -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
	  --platform manylinux2014_x86_64 --platform any -d build/gpu-bundle torchao fla-core || echo 'gpu-bundle: no peers'
	du -sh build/gpu-bundle

test-gpu-kernels: build ## numerics of the GPU kernels, in Triton's interpreter
	@TRITON_INTERPRET=1 $(BIN)/pytest $(ARGS)

bench: build ## kernels beside their competitors, sparse attention, networks, the demo's table; build/bench*.json
	@$(BIN)/pytest -c bench/pytest.ini bench --rows build/bench.json $(ARGS)
	$(BIN)/python -m bench.keep build/bench.json
	$(BIN)/python -m bench.networks --json build/networks.json
	$(BIN)/deepseek-fast bench attention --json build/attention.json
	$(BIN)/deepseek-fast demo --out demo-output

bench-baseline: bench ## `make bench`, kept as this CPU's baseline, and the READMEs' tables filled from it
	@for i in 1 2; do $(BIN)/deepseek-fast bench --quick --json build/bench-$$i.json >/dev/null; done
	$(BIN)/python -m bench.keep build/bench.json build/bench-[12].json --demo demo-output/demo.json \
	  --networks build/networks.json --attention build/attention.json --write
	$(BIN)/python -m bench.readme

.PHONY: openvino
openvino: build ## OpenVINO in a folder of its own, as a competitor of `python -m bench.networks`
	@$(LOCKED) build/openvino.stamp

.PHONY: bench-peers peers
peers: build
	@$(LOCKED) $(PEERS)/package.stamp

bench-peers: peers ## kernels beside ZenDNN, OpenVINO, vLLM, NumKong and torchao too; build/bench-peers.json
	@$(PEERS)/bin/deepseek-fast bench --peers all --json build/bench-peers.json $(ARGS)

bench-gate: build ## fail where a kernel is slower than this CPU's baseline, or its loops have changed
	@$(BIN)/deepseek-fast bench --quick --baseline bench/baseline
	$(BIN)/python -m bench.instructions

lint: build ## ruff, clang-format, mypy
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	git ls-files -co --exclude-standard -- '*.cc' '*.h' '*.cu' | xargs -r $(BIN)/clang-format --dry-run -Werror
	$(BIN)/mypy

format: build ## let ruff and clang-format rewrite the sources
	@$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format -q .
	git ls-files -co --exclude-standard -- '*.cc' '*.h' '*.cu' | xargs -r $(BIN)/clang-format -i

gpu: build ## what can be checked on a GPU machine
	@$(BIN)/python -c 'import torch; print("CUDA device:", torch.cuda.get_device_name() if torch.cuda.is_available() else "none")'
	$(BIN)/pytest -m 'gpu and not slow' $(ARGS)

clean: ## remove the environment and everything built
	@rm -rf $(VENV) build demo-output .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	echo '  ARGS="..." is handed on; PYTHON=python3.12 chooses the interpreter of a new .venv'

# --- how it is set up ------------------------------------------------------------------------------------------------
$(VENV)/tools.stamp:
	@$(call run,environment,$(PYTHON) -m venv $(VENV) && echo '$(TORCH)' >$(VENV)/constraints.txt && \
	  $(BIN)/python -m pip install 'cmake>=3.25' ninja)
	touch $@

$(VENV)/torch.stamp: $(VENV)/tools.stamp
	@$(call run,torch,$(BIN)/python -m pip install '$(TORCH)')
	touch $@

# Every requirement that pyproject.toml names, all extras included; torch stays what it is (PIP_CONSTRAINT).
define REQUIREMENTS
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)
wanted = project["build-system"]["requires"] + project["project"]["dependencies"]
wanted += sum(project["project"]["optional-dependencies"].values(), [])
print("\n".join(name for name in wanted if not name.startswith("deepseek-fast")))
endef
export REQUIREMENTS

$(VENV)/deps.stamp: $(VENV)/torch.stamp pyproject.toml
	@$(BIN)/python -c "$$REQUIREMENTS" >$(VENV)/requirements.txt
	$(call run,packages,$(BIN)/python -m pip install -r $(VENV)/requirements.txt)
	touch $@

SOURCES := $(shell find csrc kernels \( -name '*.cc' -o -name '*.h' -o -name '*.inc' -o -name '*.txt' -o -name '*.tsv' \) 2>/dev/null)
# The names of all files: an added or removed one, Python included, calls for a new install.
NAMES := $(shell find csrc kernels deepseek_fast -name __pycache__ -prune -o -type f -print 2>/dev/null | LC_ALL=C sort)
$(VENV)/names.txt: FORCE
	@mkdir -p $(VENV)
	printf '%s\n' $(NAMES) | cmp -s - $@ || printf '%s\n' $(NAMES) >$@
FORCE:

$(VENV)/build.stamp: $(VENV)/deps.stamp $(VENV)/names.txt CMakeLists.txt pyproject.toml $(SOURCES)
	@$(call run,build,$(BIN)/python -m pip install --no-build-isolation --no-deps -e .)
	touch $@

# _C_core for aarch64; the tests keep it up to date. Without the cross compiler they are skipped, and say so.
CROSS := aarch64-linux-gnu
CORE = PATH="$$PWD/$(BIN):$$PATH" cmake -S . -B $(@D) -G Ninja -D CMAKE_BUILD_TYPE=Release -D DSF_DOORS=OFF
$(EMULATED)/aarch64/build.ninja: $(VENV)/tools.stamp CMakeLists.txt
	@if ! command -v $(CROSS)-g++ >/dev/null; then echo "test-emulated: no $(CROSS)-g++"; exit 0; fi
	$(call run,aarch64,$(CORE) -D CMAKE_SYSTEM_NAME=Linux -D CMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -D CMAKE_C_COMPILER=$(CROSS)-gcc -D CMAKE_CXX_COMPILER=$(CROSS)-g++ && $(BIN)/cmake --build $(@D))
	touch $@

build/openvino.stamp: $(VENV)/deps.stamp bench/peers.txt
	@rm -rf build/openvino
	$(call run,openvino,$(BIN)/python -m pip install --no-deps --target build/openvino $$(grep '^openvino==' bench/peers.txt))
	touch $@

# The optional competitors have an environment of their own, with a wheel of this package: none of them can reach .venv.
TORCH_VERSION := import importlib.metadata; print(importlib.metadata.version("torch"))
$(PEERS)/peers.stamp: $(VENV)/torch.stamp bench/peers.txt
	@$(call run,peers-venv,$(PYTHON) -m venv $(PEERS))
	$(call run,peers-torch,$(PEERS)/bin/python -m pip install '$(TORCH)')
	$(call run,peers,$(PEERS)/bin/python -m pip install --no-deps -r bench/peers.txt)
	touch $@

$(PEERS)/package.stamp: $(PEERS)/peers.stamp $(VENV)/build.stamp $(filter %.py,$(NAMES))
	@rm -rf $(PEERS)/wheel
	$(call run,peers-wheel,$(BIN)/python -m pip wheel --no-build-isolation --no-deps -w $(PEERS)/wheel .)
	wheel=$$(echo $(PEERS)/wheel/*.whl) extras='[onnx,bench]'
	$(call run,peers-ours,$(PEERS)/bin/python -m pip install --no-deps --force-reinstall $$wheel && \
	  $(PEERS)/bin/python -m pip install "$$wheel$$extras")
	wanted=$$($(BIN)/python -c '$(TORCH_VERSION)') got=$$($(PEERS)/bin/python -c '$(TORCH_VERSION)')
	[ "$$got" = "$$wanted" ] || { echo "bench-peers: torch must stay $$wanted; got $$got from bench/peers.txt"; exit 1; }
	touch $@
