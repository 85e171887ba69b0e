# Everything is done by the scripts in tools/; this is the table of contents.
# No target needs another to be made by hand first.

PY = .venv/bin/python
TESTS ?=
SOAK ?=
CHAOS ?=

.DEFAULT_GOAL = help
.PHONY: help demo test check setup format lint types layers docs docs-check bench soak chaos clean distclean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.* ## \(.*\)/  make \1	\2/p' Makefile | expand -t 20

demo: ## render a fractal on four workers, lose one on the way, and show what happened
	@sh tools/setup.sh base
	@$(PY) examples/fractal/demo.py

test: ## everything that must hold: format, lint, types, layers, documents, tests
	@sh tools/setup.sh dev
	@sh tools/debian-packages.sh tests
	@sh tools/check.sh $(TESTS)

check: test ## the same

setup: ## only make .venv, with all that development needs
	@sh tools/setup.sh dev

format: setup ## put the code into its form
	@.venv/bin/ruff format --quiet .
	@.venv/bin/ruff check --quiet --fix-only .

lint: setup ## ruff
	@.venv/bin/ruff check .

types: setup ## mypy, strict
	@.venv/bin/mypy

layers: setup ## import-linter: which room may import which
	@.venv/bin/lint-imports --no-cache --no-logo

docs: setup ## write the generated documents anew
	@$(PY) tools/gen_docs.py --write

docs-check: setup ## are the generated documents fresh?
	@$(PY) tools/gen_docs.py --check

bench: setup ## run the benchmarks; each prints its numbers
	@set -e; for bench in benchmarks/*.py; do \
		case $$bench in *'*.py'|benchmarks/_*) continue;; esac; \
		echo "== $$bench"; $(PY) $$bench; \
	done

soak: setup ## play new simulated histories until Ctrl-C; failing seeds are printed with the command to replay them
	@$(PY) -m kestrel.sim --soak $(SOAK)

chaos: setup ## 100,000 tasks while workers, managers, server and PostgreSQL are killed; ends with a table of zeros
	@sh tools/debian-packages.sh tests
	@$(PY) benchmarks/chaos $(CHAOS)

clean: ## remove what tools and the demo left behind
	@rm -rf dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@rm -rf examples/*/out
	@find src tests tools examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## that, and .venv
	@rm -rf .venv
