# make study   the laptop study: three runs, runs/laptop-seed0 to 2, and one report on all: runs/laptop/report.html
# make test    lint, types and tests
# make english the study of a small Llama that reads English: runs/english/report.html
# Each makes a virtual environment in .venv first. ARGS is passed on: make study SEEDS=0

PYTHON ?= python3
BIN := .venv/bin

SEEDS ?= 0 1 2  # a run each: weights, data and world; verdicts need three

.PHONY: study test english bench clean

study: .venv/ready
	$(BIN)/tunescope study laptop --seed $(SEEDS) --jobs auto $(ARGS)

test: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(ARGS)

english: .venv/ready
	$(BIN)/tunescope study english --plugin examples/english.py --out runs/english $(ARGS)

bench: .venv/ready
	$(BIN)/python benchmarks/prompts.py
	$(BIN)/python benchmarks/training_step.py gpt2
	$(BIN)/python benchmarks/training_step.py llama
	$(BIN)/python benchmarks/study.py laptop

.venv/ready: pyproject.toml
	@echo "setting up .venv (once; it downloads PyTorch, so give it some minutes)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "tunescope needs Python 3.11 or newer; name one with make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
