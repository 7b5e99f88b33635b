# Two verbs to know: `make run` and `make test`. Both prepare everything they need.
PY ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
UV := .tools/bin/uv
BIN := .venv/bin
export UV_PYTHON_DOWNLOADS := never

.PHONY: help setup run demo psql test bench bench-long soak year backup restore-drill rollback-check planted check proto baseline fmt lock clean
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

.venv/.ok: requirements-dev.lock pyproject.toml
	@test -n "$(PY)" || { echo "Python 3.11 or newer is needed; none was found. Install it, or name one: make $(MAKECMDGOALS) PY=/path/to/python3"; exit 1; }
	@if command -v uv >/dev/null 2>&1; then mkdir -p .tools/bin && ln -sf "$$(command -v uv)" $(UV); \
	 else test -x $(UV) || $(PY) -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target .tools uv==0.13.8 || true; fi
	@# Where the home folder is closed to us (sudo -u), uv has to do without it.
	@if test -x $(UV); then \
	   cache="$$($(UV) cache dir)"; { mkdir -p "$$cache" && test -w "$$cache"; } 2>/dev/null \
	   || export UV_NO_CACHE=1 UV_PYTHON_INSTALL_DIR="$(CURDIR)/.tools/python"; \
	   $(UV) venv --quiet --allow-existing --python "$(PY)" .venv \
	   && $(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements-dev.lock; \
	 else \
	   $(PY) -m venv .venv || { echo "This Python has neither pip nor venv; on Debian: apt-get install python3-venv"; exit 1; }; \
	   $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock; \
	 fi
	@$(BIN)/python -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "billing-suite.pth").write_text("$(CURDIR)\n$(CURDIR)/gen\n")'
	@printf '#!/bin/sh\nexec "$$(dirname "$$0")/python" -m billctl "$$@"\n' > $(BIN)/billctl && chmod +x $(BIN)/billctl
	@touch $@

setup: .venv/.ok ## create .venv from the hashed lock

run: .venv/.ok ## start the whole suite: Postgres, the four rooms, the Razorpay sandbox
	@$(BIN)/python -m suite run

demo: .venv/.ok ## tell the main job as a story against a running suite, or start one
	@$(BIN)/python -m suite demo

psql: .venv/.ok ## open psql as the operator role on the running suite
	@$(BIN)/python -m suite psql

test: .venv/.ok ## run every test, or TESTS=tests/ledger
	@$(BIN)/python -m pytest -q $(TESTS)

SECONDS ?= 600
soak: .venv/.ok ## run each long form of the fault tests and random programs for SECONDS=600; SEED=… repeats a run
	@SOAK_SECONDS=$(SECONDS) SOAK_SEED=$(SEED) $(BIN)/python -m pytest -s -n 0 -m soak $(TESTS)

bench: .venv/.ok ## measure ledger and ingress beside simpler ones; QUICK=1 ends within ten minutes; ONLY=webhooks or ledger
	@$(BIN)/python -m bench $(if $(QUICK),quick,full) $(ONLY)

bench-long: .venv/.ok ## the same with ten million transactions of history
	@$(BIN)/python -m bench long

TENANTS ?= 100
DAYS ?= 365
year: .venv/.ok ## live a year of TENANTS=100 tenants through the suite in minutes, and check the end; SEED=… repeats one
	@TENANTS=$(TENANTS) DAYS=$(DAYS) SEED=$(SEED) KILLS=$(KILLS) $(BIN)/python -m tests.year

backup: .venv/.ok ## back up the database while it works, or TO=/var/backups/billing; see docs/backup.md
	@$(BIN)/python -m suite backup $(if $(TO),--to $(TO))

restore-drill: .venv/.ok ## lose a suite under load for SECONDS=60 and give it back elsewhere from a backup; prints RPO and RTO
	@SOAK_SECONDS=$(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),60) $(BIN)/python -m pytest -q -s -n 0 -m soak tests/journeys/test_restore.py

rollback-check: .venv/.ok ## run the previous release's tests on this schema, then its rooms beside these; PREVIOUS=<commit>, TESTS=tests/ledger
	@PREVIOUS=$(PREVIOUS) $(BIN)/python -m tests.rollback $(TESTS)
	@PREVIOUS=$(PREVIOUS) $(BIN)/python -m pytest -q -n 0 -m soak tests/rollback

planted: .venv/.ok ## plant the usual bugs in copies of this checkout, or BUGS=no_unique_key: the tests have to catch each
	@$(BIN)/python -m tests.planted $(BUGS)

check: .venv/.ok ## lint contracts and code, check types
	@$(BIN)/buf format -d --exit-code proto
	@$(BIN)/buf lint
	@$(BIN)/buf breaking proto --against proto/baseline.binpb
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

proto: .venv/.ok ## generate gen/ from proto/
	@$(BIN)/python -m suite.codegen gen

baseline: .venv/.ok ## make today's contracts the promise that `make check` holds later ones to
	@$(BIN)/buf build proto --exclude-source-info -o proto/baseline.binpb

fmt: .venv/.ok ## format contracts and code
	@$(BIN)/buf format -w proto
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: ## resolve the locks anew (needs uv)
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml -o requirements.lock
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml --extra traces -o requirements-traces.lock
	@uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header pyproject.toml --extra traces --group dev -o requirements-dev.lock

clean: ## remove the environment and the embedded database of this checkout
	@$(if $(wildcard $(BIN)/python),$(BIN)/python -m suite clean,true)
	@rm -rf .venv .tools
