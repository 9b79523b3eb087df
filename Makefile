# The commands: `make train` trains a small model by SWARM parallelism on this machine, `make test` checks
# everything, `make chaos` kills and freezes the processes of a run for a long time and compares what comes out with
# one process, to the bit. They need Python >= 3.11 and make, nothing else.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: train test chaos clean

train: $(INSTALLED)
	out="runs/tiny-$$(date +%Y%m%d-%H%M%S)" && \
	$(BIN)/zswarm local deploy/examples/tiny.toml --out "$$out" && \
	$(BIN)/zswarm audit "$$out" && \
	$(BIN)/zswarm generate "$$out"

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports
	$(BIN)/pytest -n auto --dist loadgroup

# make chaos ROLES=trainer KINDS=kill FAULTS=50 SEED=3 kills the trainer and nobody else.
ROLES := worker,broker,trainer
KINDS := kill,freeze
FAULTS := 200
EVERY := 2
SEED := 0
STEPS := 1500
chaos: $(INSTALLED)
	out="runs/chaos-$$(date +%Y%m%d-%H%M%S)" && \
	$(BIN)/zswarm chaos deploy/examples/chaos.toml --out "$$out" --json "$$out.json" \
		--workers 2 --brokers 2 --roles $(ROLES) --kinds $(KINDS) --faults $(FAULTS) --every $(EVERY) --seed $(SEED) \
		--set run.steps=$(STEPS)

# A new pyproject.toml or constraints.txt installs again; otherwise once.
$(INSTALLED): pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
		for python in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
			if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
				echo "$$python -m venv $(VENV)"; \
				"$$python" -m venv $(VENV) || exit 1; \
				break; \
			fi; \
		done; \
	fi
	@if [ ! -x $(BIN)/python ]; then \
		echo "zswarm needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
