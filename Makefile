# Every target sets up what it needs on a fresh machine: Python 3.11 or newer is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0

.PHONY: demo test test-services coverage lint docs bench clean

demo: $(VENV)/.runtime  ## the whole path on the bundled model, in a minute or two
	$(BIN)/laconic demo --overwrite

test: $(VENV)/.dev  ## unit tests, contract suites, examples
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadscope

test-services: $(VENV)/.services  ## stores on real services: PostgreSQL and S3, on the loopback
	LACONIC_SERVICES=1 $(BIN)/python -m pytest -q tests/services

coverage: $(VENV)/.dev  ## how much of the ground floor its own tests run; fails under 95 %
	scripts/coverage.sh

lint: $(VENV)/.dev  ## format, style, types, import contracts
	$(BIN)/ruff format --check src tests benchmarks scripts
	$(BIN)/ruff check src tests benchmarks scripts
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev  ## the site, strictly, into site/
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.dev  ## every proof; needs ZOO and DATA folders; rewrites docs/results.md
	$(BIN)/pip install -q -c constraints.txt zipnn==0.5.4
	$(BIN)/python -m benchmarks --all $(if $(ZOO),--zoo $(ZOO)) $(if $(DATA),--data $(DATA))

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(TORCH)
	touch $@

$(VENV)/.runtime: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.services: $(VENV)/.dev
	$(BIN)/pip install -q -c constraints.txt -e '.[services]'
	ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq postgresql; }
	touch $@

clean:
	rm -rf $(VENV) site .cache laconic-demo
