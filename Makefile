# Every target builds what it needs: `make demo` and `make test` want Python 3.11+ and nothing else.
#
#   PYTHON=python3.12      the interpreter that .venv is made with
#   TORCH_INDEX=URL        where torch comes from; https://download.pytorch.org/whl/cpu asks for the CPU build,
#                          a tenth of the download where there is no GPU
#   BENCH='key=value ...'  options of `make bench`, see workbench/bench/options.py; size=full for the public model on one GPU
#   LOGS=FOLDER            what `make tensorboard` opens: runs; one study folder for the HParams of that study
#   RUN=FOLDER             the run or study folder of `make report`
#   ZOO='key=value ...'    options of `make zoo-report` and `make benchmarks`, see studies/tiny_model/figures.py
#   RECIPE=FILE            base recipe of a study: demo.yaml for CPUs, studies/recipes/gpu.yaml for one GPU
#   STUDY='key=value ...'  options of a study and overrides of its recipe: workers=4 seeds=0,1 trainer.updates=100
#   SPECIALISTS='{...}'    teachers.specialists of the studies that guide by them
#   PROXY=FOLDER           of a study: another base with its specialists, as studies/tiny_model/proxy_small.yaml builds them
#   SMOKE=1                of a study: two trials of two updates, minutes on two cores, into runs/studies-smoke

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
TORCH_INDEX ?=
RECIPE := studies/recipes/demo.yaml
DEMO := studies/recipes/stepwise.yaml
RUN ?= runs/demo
LOGS ?= runs
BENCH ?=
ZOO ?=
SMOKE ?=
STUDY ?=
PROXY ?=
# A smoke run needs no trained specialists: as long as none ship, random ones are made for it.
ADAPTERS := $(if $(wildcard workbench/assets/tiny/portrait.safetensors)$(if $(SMOKE),,trained),tiny,data/smoke/specialists)
ADAPTER = $(if $(PROXY),$(patsubst %/,%,$(PROXY))/$(1),$(ADAPTERS))/$(1).safetensors
SPECIALISTS ?= {portrait: $(call ADAPTER,portrait), text: $(call ADAPTER,text), editing: $(call ADAPTER,editing)}
# What a text encoder makes of a prompt is its own: a proxy has encoded shards of its own.
OF_PROXY := $(if $(PROXY),model.folder=$(patsubst %/,%,$(PROXY))/base/teacher data.encoded=data/$(notdir $(patsubst %/,%,$(PROXY)))/encoded)
PLACE_SUFFIX := $(if $(PROXY),-$(notdir $(patsubst %/,%,$(PROXY))))
MADE_ADAPTERS := $(if $(filter tiny,$(ADAPTERS))$(PROXY),,$(addprefix $(ADAPTERS)/,portrait.safetensors text.safetensors editing.safetensors))
BASE_RECIPE := $(if $(SMOKE),studies/recipes/smoke.yaml,$(RECIPE))
STUDIES := runs/studies$(if $(SMOKE),-smoke)

GUIDED := 'teachers.specialists=$(SPECIALISTS)'
# The alarm for a collapse wants some 540 cases, seconds on a GPU and minutes on a CPU.
OPTIONS_teacher-guidance = $(GUIDED) evaluation.milestone_cases=$(if $(SMOKE),1,$(if $(findstring demo,$(RECIPE)),4,60))
# Twenty milestones tell a noisy student from a steady one.
OPTIONS_known-answers = teachers.cfg_scale=3 evaluation.milestone_cases=$(if $(SMOKE),1,20) $(if $(SMOKE),,trainer.sample_every=15)
OPTIONS_fidelity = $(GUIDED)
OPTIONS_task-mixture = $(GUIDED)
OPTIONS_screening = $(GUIDED)
OPTIONS_search = $(GUIDED) $(if $(SMOKE),evaluation.t2i_cases=4)
OPTIONS_method = $(if $(SMOKE),teachers.cfg_scale=3)

VENV := .venv
BIN := $(VENV)/bin
WORKBENCH := $(BIN)/workbench
PIP := $(BIN)/python -m pip --disable-pip-version-check
# pip reads the pins from one file; a stamp is newer than the files it was made from, or it is made again.
BASE_STAMP := $(VENV)/.base
DEV_STAMP := $(VENV)/.dev

.DEFAULT_GOAL := help
.PHONY: help demo test test-gpu lint types format bench tensorboard report pilot zoo zoo-smoke zoo-report benchmarks clean
.DELETE_ON_ERROR:

help: ## this list
	@echo "usage: make TARGET [NAME=value]"
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { sub(/%/, "NAME", $$1); printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@awk '/^#   [A-Z_]+=/ { sub(/^# /, ""); print } /^#    +[^ A-Z]/ { sub(/^# /, ""); print }' $(MAKEFILE_LIST)

$(BASE_STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: no Python 3.11 or newer with venv found; install one (Debian: python3-venv) or name it: make PYTHON=/path/to/python3" >&2; exit 2; }
	@test -x $(BIN)/pip || { echo "making $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); }
	$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(DEV_STAMP): $(BASE_STAMP)
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(BASE_STAMP) ## pack, encode, distil, evaluate and report with the model that ships; again: continues
	$(WORKBENCH) pack $(DEMO)
	$(WORKBENCH) encode $(DEMO)
	$(WORKBENCH) distill $(DEMO)
	$(WORKBENCH) evaluate runs/demo
	$(WORKBENCH) report runs/demo
	@echo
	@echo "The report:      runs/demo/report.html (open it in a browser)"
	@echo "The curves:      make tensorboard, then http://localhost:6006"
	@echo "Draw something:  $(WORKBENCH) sample runs/demo/student \"a portrait of a cat\" --out cat.png"

# Three on two cores: some tests mostly wait for processes.
test: $(DEV_STAMP) ## all tests, three files at a time, the longest first
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-gpu: $(DEV_STAMP) ## what only a GPU shows (two for FSDP); the stock pipeline needs torchvision, which is installed first
	$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torchvision
	$(BIN)/python -m pytest tests/gpu -m gpu

lint: $(DEV_STAMP) ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV_STAMP) ## mypy
	$(BIN)/mypy

format: $(DEV_STAMP) ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BASE_STAMP) ## this engine against the plain arrangement of the same algorithm, on this machine
	$(BIN)/python -m workbench.bench $(BENCH)

tensorboard: $(BASE_STAMP) ## curves, samples and hyper-parameters of everything under LOGS
	$(BIN)/tensorboard --logdir $(LOGS)

report: $(BASE_STAMP) ## write RUN/report.html again
	$(WORKBENCH) report $(RUN)

study-%: $(BASE_STAMP) $(MADE_ADAPTERS) ## run a study by its name in studies/catalogue.py; noise-floor first: the others read it
	$(WORKBENCH) pack $(BASE_RECIPE)
	$(WORKBENCH) encode $(BASE_RECIPE) $(OF_PROXY)
	$(WORKBENCH) study $* recipe=$(BASE_RECIPE) folder=$(STUDIES)/$*$(PLACE_SUFFIX) $(OF_PROXY) $(OPTIONS_$*) $(if $(SMOKE),trials=2 workers=2) $(STUDY)
	$(WORKBENCH) report $(STUDIES)/$*$(PLACE_SUFFIX)

PLAN_ONLY = $(filter dry_run=true,$(STUDY))
pilot: $(BASE_STAMP) $(MADE_ADAPTERS) ## a campaign's first studies in turn; STUDY='minutes=8 workers=3' a piece at a time, 'dry_run=true' what it costs
	$(if $(PLAN_ONLY),,$(WORKBENCH) pack $(BASE_RECIPE))
	$(if $(PLAN_ONLY),,$(WORKBENCH) encode $(BASE_RECIPE) $(OF_PROXY))
	$(BIN)/python -m studies.pilot recipe=$(BASE_RECIPE) folder=runs/pilot$(PLACE_SUFFIX)$(if $(SMOKE),-smoke) $(OF_PROXY) $(GUIDED) $(if $(SMOKE),smoke=true trials=2 workers=2) $(STUDY)

data/smoke/specialists/%.safetensors: $(BASE_STAMP)
	$(BIN)/python tests/fakes/random_adapter.py $@

zoo: $(BASE_STAMP) ## rebuild the tiny model and the judge from nothing, on one GPU, into runs/zoo; again: continues
	$(BIN)/python -m studies.tiny_model.build studies/tiny_model/zoo.yaml

zoo-smoke: $(BASE_STAMP) ## every stage of the zoo for seconds, on CPU, into runs/zoo-smoke
	rm -rf runs/zoo-smoke
	$(BIN)/python -m studies.tiny_model.build studies/tiny_model/smoke.yaml

zoo-report: $(BASE_STAMP) ## measure the shipped model again, every row of its card; ZOO='cases=20 card=true ...'
	$(BIN)/python -m studies.tiny_model.report $(ZOO)

benchmarks: $(BASE_STAMP) ## real, teacher, specialists, few-step teacher (and ZOO='student=FOLDER') into docs/benchmarks.md
	$(BIN)/python -m studies.tiny_model.benchmarks $(ZOO)

clean: ## remove .venv and caches; runs/ and data/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find workbench datamodules studies tests -name __pycache__ -type d -prune -exec rm -rf {} +
