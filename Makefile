# SPDX-License-Identifier: Apache-2.0
#
# `make help` lists what there is. Running a target twice does no work twice: what was set up
# leaves a stamp in .venv/, and a newer pyproject.toml, setup.py or C file undoes it.

SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PYTEST = $(BIN)/python -m pytest $(PYTEST_ARGS)
REPORTS := build/reports

# What a change of rebuilds the extension modules.
C_SOURCES := setup.py $(wildcard udrv/*/src/*.[ch] udrv/*/include/udrv/*.h udrv/*/decl/*.h udrv/*/_build.py)
C_FLAGS := -std=c11 -D_GNU_SOURCE= -O2 -Wall -Wextra -Werror -fsyntax-only
C_INCLUDES := $(patsubst %,-I%,$(wildcard udrv/*/include))
AARCH64_CC := aarch64-linux-gnu-gcc

DEMO := 'soft:?size=1G&lba=4096' --rw randread --bs 4k --iodepth 32 --runtime 5

# What needs a quiet machine comes first; what only counts, last.
BENCHES := python_overhead async_overhead idle_cpu idle_controller soft_start scaling lab_table \
	instructions stream doorbells syscalls lab_icount detect_public detect_injected
BENCHED := build/benches

.PHONY: help demo bench test test-fast test-lab fuzz torture lint ext stubs system lab-kernel lab-qemu clean distclean
# one environment, one build directory, two cores: the steps use the cores themselves
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

# --- what users run ----------------------------------------------------------------------------

demo: $(VENV)/.installed $(VENV)/.built ## set up, then measure a software NVMe device
	$(BIN)/udrv-bench run $(DEMO)

bench: ## set up, measure all, and write benches/RESULTS.md: half an hour
	@tools/setup.sh system bench
	$(MAKE) $(VENV)/.installed-bench $(VENV)/.built lab-kernel
	@mkdir -p $(BENCHED)
	@for name in $(BENCHES); do \
		echo "bench: $$name, $$(date +%T)"; \
		$(BIN)/python benches/$$name.py --write --json >$(BENCHED)/$$name.json || exit 1; \
	done
	$(BIN)/python benches/summary.py --write

test: system ## set up, then all tests but the full counts: lint, test-fast, two boots of the lab
	$(MAKE) lint test-fast
	$(MAKE) lab-kernel lab-qemu
	$(PYTEST) tests/lab -m "not full" --junitxml=$(REPORTS)/lab.xml

test-fast: $(VENV)/.installed-dev $(VENV)/.built ## unit tests and the software device: a few minutes
	$(PYTEST) tests/unit tests/soft -m "not full" --junitxml=$(REPORTS)/fast.xml

test-lab: system ## the full counts
	$(MAKE) $(VENV)/.installed-dev $(VENV)/.built lab-kernel lab-qemu
	$(PYTEST) tests -m full --junitxml=$(REPORTS)/full.xml || [ $$? -eq 5 ] # 5: there are none

fuzz: ## fuzzers of what others write, RUNS=2500000 inputs each: long; installs clang
	$(MAKE) -C fuzz run $(if $(RUNS),RUNS=$(RUNS))

torture: $(VENV)/.installed-dev $(VENV)/.built ## random workloads under random faults; RUNS=10000
	$(BIN)/python tests/soft/torture.py --runs $(or $(RUNS),10000) --first $(or $(FIRST),0)

lint: $(VENV)/.installed-dev $(VENV)/.built ## ruff, mypy --strict, the layers, C warnings (x86-64 and aarch64)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	gcc $(C_FLAGS) $(C_INCLUDES) udrv/*/src/*.c
	@if command -v $(AARCH64_CC) >/dev/null; then set -x; \
		$(AARCH64_CC) $(C_FLAGS) $(C_INCLUDES) udrv/*/src/*.c; \
	else echo "lint: no $(AARCH64_CC): aarch64 not checked ('make system' installs it)"; fi

# --- what developers run -----------------------------------------------------------------------

ext: $(VENV)/.built ## build the extension modules in place (UDRV_EXTENSIONS=core: only it)

stubs: $(VENV)/.built ## write the type stubs of the extension modules (`make ext` does it too)
	$(BIN)/python tools/make_stubs.py

system: ## the system packages that the tests need (as root; else prints the line to run)
	@tools/setup.sh system

lab-kernel: $(VENV)/.installed-dev ## the laboratory's kernel, in its cache
	$(BIN)/udrv-lab fetch

lab-qemu: $(VENV)/.installed-dev ## the QEMU that can take our controller as a device, in its cache
	$(BIN)/udrv-lab fetch-qemu

clean: ## remove what was built; keeps .venv and the laboratory's cache
	rm -rf build dist *.egg-info udrv/*/_*.so udrv/core/_core.c udrv/rings/_uring.c udrv/soft/_soft.c
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache $(VENV)/.built
	find udrv tests tools benches -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)

# --- stamps ------------------------------------------------------------------------------------

$(VENV)/.installed: pyproject.toml setup.py tools/setup.sh
	tools/setup.sh venv
	@touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py tools/setup.sh
	tools/setup.sh venv dev
	@touch $(VENV)/.installed $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	tools/setup.sh venv dev,bench
	@touch $@

# --force: setuptools compares only the files that it was told of, not _build.py or the flags.
# The lock keeps two builds in one tree apart. A partial build leaves no stamp.
$(VENV)/.built: $(C_SOURCES) | $(VENV)/.installed
	@mkdir -p build
	flock build/.lock $(BIN)/python setup.py -q build_ext --inplace --force
	@if [ -z "$$UDRV_EXTENSIONS" ]; then $(BIN)/python tools/make_stubs.py && touch $@; fi
