# run · test · check · bench · demo-persona. Everything happens in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# llama.cpp without AMX, which GCC 12.2 miscompiles (bot/llama.py, _has_amx).
export CFLAGS := $(CFLAGS) -U__AMX_INT8__
export CXXFLAGS := $(CXXFLAGS) -U__AMX_INT8__
TRAIN ?= 0

.PHONY: run test check bench demo-persona tools clean
.DEFAULT_GOAL := run

run: $(VENV)/.run$(TRAIN)
	$(BIN)/twin run

test: $(VENV)/.test
	$(BIN)/python -m pytest

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m docs.drift
	$(BIN)/python -m docs.recipes.notebook

bench: $(VENV)/.test
	$(BIN)/twin bench first-light

demo-persona: $(VENV)/.test
	$(BIN)/python -m data.demo.build

tools:
	@missing=; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  missing="$$missing CPython 3.11 or newer (packages python3.11 and python3.11-venv, then make PYTHON=python3.11);"; \
	test -n "$$missing" || $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || missing="$$missing venv (package python3-venv);"; \
	command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
	  missing="$$missing a C++ compiler (package g++; macOS: xcode-select --install);"; \
	command -v cmake >/dev/null || missing="$$missing cmake (package cmake);"; \
	test -z "$$missing" || { echo "To install first:$${missing%;}"; exit 1; }

$(VENV)/.made: | tools
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run0: $(VENV)/.made pyproject.toml constraints.txt
	@echo "Installing; llama-cpp-python compiles for 4-7 minutes the first time."
	@date +%s > $(VENV)/.began
	$(PIP) install -q -c constraints.txt -e '.[demo]'
	@test -f $(VENV)/.install_seconds || echo $$(( $$(date +%s) - $$(cat $(VENV)/.began) )) > $(VENV)/.install_seconds
	@touch $@

$(VENV)/.run1: $(VENV)/.run0
	$(PIP) install -q -c constraints.txt -e '.[demo,train]'
	@touch $@

$(VENV)/.test: $(VENV)/.run0
	$(PIP) install -q -c constraints.txt -e '.[demo,train,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
