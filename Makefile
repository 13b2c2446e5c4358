# Every target works on a machine that has only Python >= 3.11, make and the package index.
PYTHON ?= python3
BIN := .venv/bin
RESULTS := results
STAMP := .venv/.installed
# two test workers share the cores: torch and BLAS have one thread in each; files are taken in the
# order of their names, since some of the longest have few tests, and would be started last
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
PYTEST_WORKERS := -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
# tests that wait for processes of their own most of the time: they come first on the cores
WAITING := tests/pipeline
# tests of the site, which make docs runs on what it has built
OF_SITE := tests/docs/test_site.py
OTHERS := $(WAITING:%=--ignore=%) --ignore=$(OF_SITE)
# without bytecode, every program that a test starts compiles the package again
unexport PYTHONDONTWRITEBYTECODE
EXITS := results/exits/smollm2-135m-all

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-waiting test-others lint types ci bench mutants coverage data data-validation data-gemma gpu notebooks docs figures clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{n[NR] = $$1; t[NR] = $$2; if (length($$1) > w) w = length($$1)} END {for (i = 1; i <= NR; i++) printf "  make %-*s  %s\n", w, n[i], t[i]}'

setup: $(STAMP) ## make .venv with everything

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("error: Python must be 3.11 or newer; got " + sys.version.split()[0] + "; run: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[measure,notebooks,docs,dev]'
	@touch $@

demo: $(STAMP) ## measure a real model, fit, plot, and say which setting is best
	$(BIN)/ppdmodel models install smollm2-135m
	$(BIN)/ppdmodel measure --model smollm2-135m --limit 48 --max-new-tokens 64 --out $(RESULTS)/measurement
	$(BIN)/ppdmodel fit $(RESULTS)/measurement --out $(RESULTS)/calibration.json
	$(BIN)/ppdmodel plot $(RESULTS)/calibration.json --kind match-rate --out $(RESULTS)/match-rate.png
	$(BIN)/ppdmodel plot $(RESULTS)/calibration.json --kind trade-off --out $(RESULTS)/trade-off.png
	$(BIN)/ppdmodel plot --kind theory --layers 30 --out $(RESULTS)/theory.png
	$(BIN)/ppdmodel explore $(RESULTS)/calibration.json --out $(RESULTS)/explorer.html
	$(BIN)/ppdmodel optimize $(RESULTS)/calibration.json

test: $(STAMP) ## run the tests
	$(BIN)/ppdmodel models install smollm2-135m
	$(MAKE) --no-print-directory --jobs=2 test-waiting test-others

test-waiting:
	$(BIN)/python -m pytest -q $(WAITING)

test-others:
	$(ONE_THREAD) nice -n 10 $(BIN)/python $(PYTEST_WORKERS) $(OTHERS)

lint: $(STAMP) ## ruff, and imports that run one way
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

notebooks: $(STAMP) ## run the notebooks from top to bottom
	$(BIN)/python -m pytest -q --nbmake --nbmake-timeout=60 notebooks

docs: $(STAMP) ## make the documentation site, build/docs; warnings are errors
	rm -rf build/docs
	$(BIN)/python -m sphinx -c docs -d build/doctrees -E -q -W --keep-going . build/docs
	SITE=build/docs $(BIN)/python -m pytest -q $(OF_SITE)
	@echo "open build/docs/index.html"

ci: lint types test notebooks docs ## the gate: lint, types, tests, notebooks, documentation

mutants: $(STAMP) ## try the tests on a sample of small changes (an hour); ROOM=fitting SAMPLE=20 SEED=1 MINUTES=10
	$(BIN)/ppdmodel models install smollm2-135m
	$(BIN)/python -m quality.mutants $(ROOM:%=--room %) $(SAMPLE:%=--sample %) $(SEED:%=--seed %) $(MINUTES:%=--minutes %)

coverage: $(STAMP) ## run the tests and say which branches of the package they never took
	$(BIN)/ppdmodel models install smollm2-135m
	rm -rf build/coverage && mkdir -p build/coverage
	$(ONE_THREAD) $(BIN)/coverage run $(PYTEST_WORKERS) $(OTHERS)
	$(BIN)/coverage run -m pytest -q $(WAITING)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

bench: $(STAMP) ## time and memory of the main job, start-up, and the closed forms
	$(BIN)/python -m benchmarks

data: $(STAMP) ## make again what data/ and docs/images/ hold
	$(BIN)/ppdmodel models install smollm2-135m
	$(BIN)/ppdmodel measure --model smollm2-135m --max-new-tokens 128 --out data/smollm2-135m
	$(BIN)/ppdmodel measure --model smollm2-135m --temperature 1 --no-guesses --out data/smollm2-135m-sampled
	$(BIN)/python -m experiments.exits smollm2-135m
	$(BIN)/python -m experiments.shortlist smollm2-135m --tokens 10000 --prompts 16
	$(BIN)/ppdmodel fit data/smollm2-135m --out data/smollm2-135m.calibration.json
	$(BIN)/ppdmodel fit data/smollm2-135m-trained --out data/smollm2-135m-trained.calibration.json
	$(BIN)/python -m experiments.coverage
	$(BIN)/python -m experiments.prompt_lookup
	$(MAKE) data-validation
	$(BIN)/ppdmodel plot data/smollm2-135m.calibration.json --kind match-rate --out docs/images/match-rate.svg
	$(BIN)/ppdmodel plot data/smollm2-135m.calibration.json --kind trade-off --out docs/images/trade-off.svg
	$(BIN)/ppdmodel plot data/smollm2-135m-trained.calibration.json --kind match-rate --out docs/images/match-rate-trained.svg
	$(BIN)/ppdmodel plot data/smollm2-135m-trained --kind compare --out docs/images/compare.svg
	$(BIN)/ppdmodel plot data/smollm2-135m-trained --kind threshold --out docs/images/threshold.svg
	$(BIN)/ppdmodel plot --kind theory --layers 30 --out docs/images/theory.svg
	$(BIN)/ppdmodel plot --kind timeline --layers 8 --exit-layer 4 --k 2 --out docs/images/timeline.svg

data-validation: $(STAMP) ## time, predict and run PPD again on this machine (an hour); needs the exits of make data
	$(BIN)/ppdmodel time --exits $(EXITS) --k 1,3,5 --rounds 16 --out data/smollm2-135m-trained.timing.json
	$(BIN)/ppdmodel validate --exits $(EXITS) --calibration data/smollm2-135m-trained.calibration.json --timing data/smollm2-135m-trained.timing.json --limit 20 --fit-prompts 6 --out data/smollm2-135m-trained-validation
	$(BIN)/ppdmodel time --k 1,3,5 --rounds 16 --out data/smollm2-135m.timing.json
	$(BIN)/ppdmodel validate --calibration data/smollm2-135m.calibration.json --timing data/smollm2-135m.timing.json --limit 20 --fit-prompts 6 --out data/smollm2-135m-validation
	$(BIN)/python -m experiments.exactness $(EXITS)
	$(BIN)/ppdmodel plot data/smollm2-135m-validation,data/smollm2-135m-trained-validation --kind predicted --out docs/images/predicted.svg

data-gemma: $(STAMP) ## make again what data/ holds of Gemma 3 270M; ACCEPT=--accept-license accepts its licence
	$(BIN)/ppdmodel models install gemma3-270m $(ACCEPT)
	$(BIN)/ppdmodel measure --model gemma3-270m --raw --no-guesses --max-new-tokens 128 --out data/gemma3-270m
	$(BIN)/python -m experiments.exits gemma3-270m --raw --tokens

# no setup: a GPU machine may have no package index, and a torch of its own
gpu: ## time and run PPD on this machine's GPUs (8 minutes), with nothing to fetch; into results/gpu
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m experiments.gpu

figures: $(STAMP) ## draw the figures of theory/ and of docs/architecture.md again
	$(BIN)/python theory/figures.py
	$(BIN)/python docs/flow.py

clean: ## remove .venv, build/ and caches; results/ stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
