# make demo | test | bench | lint | docs-check: each makes .venv and installs into it first, where that has not been done.
PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: install demo test bench lint docs-check clean
install: .venv/installed

demo: install
	$(BIN)/python -m zokern finetune

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

bench: install
	$(BIN)/python -m bench

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs-check: install
	$(BIN)/python docs/check.py README.md docs/*.md CONTRIBUTING.md

clean:
	rm -rf .venv build *.egg-info zokern/*.so

.venv/installed: pyproject.toml setup.py $(wildcard csrc/*/*.hpp csrc/*/*.cpp csrc/*/*.cu)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -e ".[test]"
	touch $@
