# SPDX-License-Identifier: Apache-2.0

# Debian's own build of Python is a quarter faster here than others, so it comes first. Override with PYTHON=...
find_python = $(shell for p in /usr/bin/python3 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PYTHON ?= $(or $(find_python),python3)
VENV := .venv
export PYTHON

.PHONY: help run test test-fresh lint bench protos root $(VENV)/.installed-run $(VENV)/.installed-dev

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

run: root $(VENV)/.installed-run ## Print the access logs of this host (as root; ARGS="--set key=value")
	@exec $(VENV)/bin/rover-host --modules access_log --config contrib/standalone.toml $(ARGS)

test: $(VENV)/.installed-dev ## Run all tests (ARGS="-k name" for some; those that need root say so)
	@$(VENV)/bin/pytest $(ARGS)

test-fresh: root ## Run `make run` and all tests on empty systems of Debian 12 and 13 (as root; takes an hour)
	@scripts/fresh-root bookworm
	@scripts/fresh-root trixie

lint: $(VENV)/.installed-dev ## Check style and types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

bench: $(VENV)/.installed-dev ## Measure parsers and, as root, the whole agent
	@for bench in tests/bench/*.py; do echo "== $$bench"; PYTHONPATH=. $(VENV)/bin/python $$bench || exit 1; done

protos: $(VENV)/.installed-dev ## Generate rover_plugin/_generated from protos/
	@PYTHON=$(VENV)/bin/python scripts/protos

root:
	@[ "$$(id -u)" = 0 ] || { echo "run as root: sudo make $(MAKECMDGOALS)" >&2; exit 1; }

# The script knows better than file times what there is to do: an environment can be there and of no use.
$(VENV)/.installed-run $(VENV)/.installed-dev:
	@scripts/install $(@:$(VENV)/.installed-%=%)
