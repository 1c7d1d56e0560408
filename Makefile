# One definition of every check. `make` alone lists the targets; .ci/run calls them in a new virtual environment.

PYTHON ?= python
# The core's own build, beside the one that pip makes; the checkout's Python finds the library that lies next to it.
CORE ?= build/core
LIBRARY = edgemoe/engine/edgemoe_core.so
SANITIZERS ?= address thread
GGML = $(shell $(PYTHON) -c "import llama_cpp, pathlib; print(pathlib.Path(llama_cpp.__file__).parent / 'lib')")
CONFIGURE = cmake -S edgemoe/core -G Ninja -DEDGEMOE_TESTS=ON

.DEFAULT_GOAL := help
.PHONY: help check format test slow core sanitize rpc gpu-build bench gpu docs language clean run

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

check: ## format, lint, types, import contracts: seconds, nothing is run
	ruff format --check .
	ruff check .
	mypy
	lint-imports

format: ## rewrite Python and C++ in the house style
	ruff format .
	ruff check --fix .
	clang-format -i $$(git ls-files '*.cpp' '*.h')

test: ## the quick tests: no GPU, no network
	$(PYTHON) -m pytest

slow: ## every architecture at every placement, 10,000 damaged files
	$(PYTHON) -m pytest -m slow --ignore tests/test_rpc.py

core: ## rebuild the core for this checkout and run its own tests
	$(CONFIGURE) -B $(CORE) -DCMAKE_BUILD_TYPE=Release
	cmake --build $(CORE) --target edgemoe_core core_test
	rm -f $(LIBRARY) && cp $(CORE)/edgemoe_core.so $(LIBRARY) # a running program keeps the old file
	$(CORE)/core_test "$(GGML)" 50

sanitize: ## the core's tests under the address and the thread sanitizer
	set -e; for sanitizer in $(SANITIZERS); do \
	    $(CONFIGURE) -B $(CORE)-$$sanitizer -DCMAKE_BUILD_TYPE=RelWithDebInfo -DEDGEMOE_SANITIZE=$$sanitizer; \
	    cmake --build $(CORE)-$$sanitizer --target core_test kernel_bench; \
	    $(CORE)-$$sanitizer/core_test "$(GGML)" 300; \
	done

rpc: ## a real second device: ggml's RPC server over loopback
	EDGEMOE_RPC_LIB=$$($(PYTHON) tests/rpc.py build build/rpc) \
	    $(PYTHON) -m pytest -m slow tests/test_rpc.py tests/test_profile_rpc.py

gpu-build: ## compile ggml's GPU backends that have a toolchain here; the others are named
	$(PYTHON) -m bench.gpu.build Vulkan ROCm --folder build/backends

bench: ## speed and memory beside llama.cpp on this CPU: minutes, and only ratios count
	$(PYTHON) bench/cpu.py

gpu: ## the plan of the GPU benchmark; docs/benchmarks.md tells how to run it
	$(PYTHON) -m bench.gpu --plan --device CUDA0

docs: ## write docs/options.md again
	$(PYTHON) -m docs.options

language: ## words per 1,000 that a reader has to decode, by folder
	$(PYTHON) -m tests.language

clean: ## remove the builds of `make`; Python finds the installed core again
	rm -rf build $(LIBRARY)

run: ## the chat on the demo model
	$(PYTHON) -m edgemoe.cli demo
