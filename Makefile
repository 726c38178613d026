# Every task sets up what it needs: a clean clone, Python 3.11 to 3.13 and make are enough.
# The gateway's environment (.venv) has no torch; export and training have one of their own (.venv-export).
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo serve test test-unit check export train bench clean
.DELETE_ON_ERROR:

PYTHON_GATEWAY := .venv/bin/python
PYTHON_EXPORT := .venv-export/bin/python
GATEWAY := .venv/.gateway
TEST := .venv/.test
EXPORT := .venv-export/.export
CHECKOV := .venv-checkov/.checkov
TEST_PROGRAMS := orthanc:/usr/sbin/Orthanc orthanc-dicomweb:/usr/share/orthanc/plugins/libOrthancDicomWeb.so \
  dcmtk:/usr/bin/storescu postgresql:/usr/lib/postgresql nginx-light:/usr/sbin/nginx chromium:/usr/bin/chromium \
  rsyslog:/usr/sbin/rsyslogd rsyslog-openssl:/var/lib/dpkg/info/rsyslog-openssl.list prometheus:/usr/bin/promtool
OUT ?= model_repository
RUN ?= runs/small
MINUTES ?= 60

help: ## list the tasks
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(GATEWAY) ## segment a made-up CT series by click, box and text; files go to demo/out
	$(PYTHON_GATEWAY) -m demo

serve: $(GATEWAY) ## run the service on 127.0.0.1:8080 (TAGS_HOST, TAGS_PORT)
	$(PYTHON_GATEWAY) -m service.cli serve

test: $(TEST) $(EXPORT) $(CHECKOV) ## every test, in both environments (TAGS_REQUIRE_ALL=1: nothing may be skipped)
	$(PYTHON_GATEWAY) -m pytest -m "not torch"
	$(PYTHON_EXPORT) -m pytest -m torch

test-unit: $(TEST) ## the fast tests only
	$(PYTHON_GATEWAY) -m pytest tests/unit tests/contract -m "not torch and not slow and not real and not triton"

check: $(TEST) ## format, lint, types, imports, and that the gateway has no torch
	$(PYTHON_GATEWAY) -m ruff format --check .
	$(PYTHON_GATEWAY) -m ruff check .
	$(PYTHON_GATEWAY) -m mypy
	.venv/bin/lint-imports
	$(PYTHON_GATEWAY) -m bandit -q -c pyproject.toml -r service contract export training bench demo
	@$(PYTHON_GATEWAY) -c "import importlib.util as i, sys; sys.exit('torch is in the gateway environment' if i.find_spec('torch') else 0)"

export: $(EXPORT) ## a checkpoint (CHECKPOINT=FILE) to the bundle in model_repository (OUT=DIRECTORY)
	@test -n "$(CHECKPOINT)" || { echo "give CHECKPOINT=FILE, such as $(RUN)/last.pt"; exit 1; }
	$(PYTHON_EXPORT) -m export --config small --checkpoint "$(CHECKPOINT)" --out "$(OUT)"

train: $(EXPORT) ## train `small` on generated phantoms (RUN=DIRECTORY, MINUTES=60); goes on where it stopped
	$(PYTHON_EXPORT) -m training run --config small --out "$(RUN)" --minutes $(MINUTES) --resume

bench: $(GATEWAY) ## times of the networks and of what the gateway adds; JSON in bench/results
	$(PYTHON_GATEWAY) -m bench.engine
	$(PYTHON_GATEWAY) -m bench.overhead
	@if command -v Orthanc >/dev/null; then $(PYTHON_GATEWAY) -m bench.ingest && $(PYTHON_GATEWAY) -m bench.drain; else echo 'bench.ingest and bench.drain need orthanc, orthanc-dicomweb and dcmtk'; fi

clean: ## remove the environments and what the tasks made; training runs stay
	rm -rf .venv .venv-export .venv-checkov .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache demo/out

# A stamp says that an environment fits pyproject.toml, so that a second run installs nothing.
$(GATEWAY): pyproject.toml scripts/environment
	scripts/environment .venv .
	@touch $@

$(TEST): pyproject.toml scripts/environment
	@command -v curl >/dev/null || scripts/debian-package curl  # the README's examples are tests
	@# What the tests of the hospital path talk to; without them those tests say that they were skipped.
	@for program in $(TEST_PROGRAMS); do \
	  test -e $${program#*:} || scripts/debian-package $${program%%:*} || true; done
	scripts/environment .venv '.[test]'
	@touch $(GATEWAY) $@

$(EXPORT): pyproject.toml scripts/environment
	scripts/environment .venv-export '.[export,proof,training,test]'
	@touch $@

# Checkov pins the versions of much that the gateway uses too, so that it lives apart.
$(CHECKOV): scripts/environment
	scripts/environment .venv-checkov 'checkov>=3.3,<4'
	@touch $@
