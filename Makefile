# make run and make test need nothing but Python 3.11+ with its venv module: each sets up all it uses.
# Start with: make help

VENV   := .venv
PYTHON ?=
UV     ?= $(shell command -v uv 2>/dev/null)
ARGS   :=
SAMPLE := sample/conductor.toml
BIN    := $(VENV)/bin

# The venv is the only Python here; what a user has set for others stays outside.
unexport PYTHONPATH PYTHONHOME PYTHONUSERBASE PYTHONSAFEPATH PYTHONNOUSERSITE VIRTUAL_ENV CONDA_PREFIX
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_CONFIG_SETTINGS
unexport UV_PYTHON UV_SYSTEM_PYTHON UV_TARGET UV_PREFIX UV_PROJECT_ENVIRONMENT
export PIP_USER := 0
export PIP_REQUIRE_VIRTUALENV := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run test check format wheel bench faults clean setup-embedded setup-test setup-dev

help: ## this list
	@echo "Conductor: background jobs on Postgres"
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-14s %s\n", $$1, $$2 }'
	@echo
	@echo "  PYTHON=python3.12 chooses the Python, UV= does without uv, ARGS=... goes to the program run."

run: setup-embedded ## a server with a Postgres of its own and a sample task, in the foreground
	@test -e $(SAMPLE) || $(BIN)/conductor init sample > /dev/null
	@$(say_where)
	@exec $(BIN)/conductor --config $(SAMPLE) start-server $(ARGS)

test: setup-test ## the whole test suite (ARGS="-k word" to choose)
	@exec $(BIN)/python -m tests $(ARGS)

check: setup-dev ## formatting, lint, types, architecture
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup-dev ## put the source into the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: setup-dev ## the wheel and the source archive, in dist/
	$(BIN)/python -m build --no-isolation

bench: setup-test ## measure it (ARGS=--quick for a taste)
	@exec $(BIN)/python -m bench $(ARGS)

faults: setup-test ## break things on purpose and see what holds (ARGS=--short: 8 minutes)
	@exec $(BIN)/python -m tests.faults $(ARGS)

clean: ## remove what these commands made, but not sample/ and its data
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- Set-up ------------------------------------------------------------------------------------
# An extra's stamp is a copy of pyproject.toml as it was when the extra was installed, so that it
# goes stale by content. The venv remembers its path and its Python: a moved checkout or another
# PYTHON= gets a new one, and so does one whose making was cut short.

setup-embedded: extra := embedded
setup-test: extra := test
setup-dev: extra := dev
setup-embedded setup-test setup-dev:
	@$(lock); $(install)

lock = exec 9<Makefile; ! command -v flock >/dev/null || flock 9 2>/dev/null || true

define install
set -eu; \
stop() { echo >&2; printf '%s\n' "$$@" >&2; exit 1; }; \
whole() { [ ! -e $(VENV)/installing ] && $(BIN)/python -c '$(health)' \
          && { read -r place; read -r python; } <$(VENV)/made-by && [ "$$place" = "$$(pwd -P)" ] \
          && case "$$python" in "$(or $(PYTHON),$$python)") ;; *) false ;; esac; }; \
if cmp -s pyproject.toml $(VENV)/has-$(extra) && whole 2>/dev/null; then exit 0; fi; \
if ! whole 2>/dev/null; then \
  [ $(VENV) = .venv ] || [ ! -e $(VENV) ] || [ -e $(VENV)/made-by ] \
    || stop "$(VENV) exists and was not made by this Makefile; name another folder: make ... VENV=folder"; \
  rm -rf $(VENV) || stop "$(VENV) cannot be replaced: another user made it. Remove it and try again."; \
  $(find_python); \
  echo "Making a virtual environment in $(VENV)"; \
  $(make_venv) || stop "The virtual environment could not be made; the reason is above." \
                      "Conductor needs Python 3.11 or newer, with venv or uv."; \
  printf '%s\n' "$$(pwd -P)" "$$python" >$(VENV)/made-by; \
fi; \
echo "Installing Conductor into it with [$(extra)], for $$($(BIN)/python --version) (a minute at most, the first time)"; \
: >$(VENV)/installing; \
$(pip_install) -e '.[$(extra)]' \
  || stop "The packages could not be installed; the reason is above. Run the same command to try again."; \
cp pyproject.toml $(VENV)/has-$(extra); \
[ $(extra) != dev ] || cp pyproject.toml $(VENV)/has-test; \
cp pyproject.toml $(VENV)/has-embedded; \
rm $(VENV)/installing
endef

# Without uv a Python must bring its own venv and pip; with it, uv may even fetch the Python.
ifeq ($(UV),)
probe       = import sys; sys.version_info >= (3, 11) or sys.exit(3); import ensurepip, venv
health      = import pip
fallback    =
make_venv   = $$python -m venv $(VENV)
pip_install = $(BIN)/python -m pip install --quiet
else
probe       = import sys; sys.version_info >= (3, 11) or sys.exit(3)
health      = import sys
fallback    = $(if $(PYTHON),,3.13)
make_venv   = $(UV) venv --quiet --no-project --python "$$(command -v $$python || echo $$python)" $(VENV)
pip_install = $(UV) pip install --quiet --python $(BIN)/python
endif
candidates = $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

# Sets $python to the first that will do. The probe exits with 3 when it is too old, 1 without venv.
define find_python
python=$(fallback) old= bare=; \
for name in $(candidates); do \
  code=0; $$name -c '$(probe)' >/dev/null 2>&1 || code=$$?; \
  case $$code in \
    0) python=$$name; break ;; \
    1) : "$${bare:=$$name}" ;; \
    3) : "$${old:=$$name is $$($$name --version)}" ;; \
  esac; \
done; \
if [ -z "$$python" ] && [ -n "$$bare" ]; then \
  stop "$$bare cannot make virtual environments: its venv package is not installed." \
       "On Debian and Ubuntu, as root: apt install $$(basename "$$bare")-venv"; \
elif [ -z "$$python" ]; then \
  stop "Conductor needs Python 3.11 or newer. Looked for: $(candidates); found: $${old:-none of them}." \
       "Install one (Debian and Ubuntu, as root: apt install python3 python3-venv)," \
       "or name one that is elsewhere: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12"; \
fi
endef

# --- What make run says ------------------------------------------------------------------------

define say_where
address=$$($(BIN)/python -c 'import os, tomllib; \
server = tomllib.load(open("$(SAMPLE)", "rb")).get("server", {}); \
print(*(os.environ.get("CONDUCTOR_SERVER_" + key.upper()) or server.get(key, default) \
for key, default in (("host", "127.0.0.1"), ("port", 8765))), sep=":")' 2>/dev/null); \
echo; \
echo "  Its health             http://$$address/readyz   (alive: /healthz, metrics: /metrics)"; \
echo "  Its tasks              $$(ls sample/*.py sample/*/*.py 2>/dev/null | tr '\n' ' ')"; \
echo "  Its settings           $(SAMPLE)"; \
echo "  To run a task          from another terminal in this folder:"; \
echo "    $(BIN)/conductor --config $(SAMPLE) tasks"; \
echo "    $(BIN)/conductor --config $(SAMPLE) invoke greet '{\"name\": \"World\"}' --wait"; \
echo "  To stop                Ctrl-C"; \
[ -z "$${CONDUCTOR_DATABASE_URL:-}" ] || echo "  Note: CONDUCTOR_DATABASE_URL is set, so that database is used, not a private one."; \
echo
endef
