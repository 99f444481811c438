# Everything runs in .venv, made here; nothing else is needed but Python 3.11+ with venv, and the package registries.
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test lint bench docs clean
.DELETE_ON_ERROR:

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(STAMP)  ## learn a prompt for a frozen language model on real film reviews (5 to 9 minutes on 2 cores)
	$(BIN)/python examples/film_reviews.py

test: $(STAMP)  ## all tests, on real models and real data
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: $(STAMP)  ## step time and memory against PEFT, and every method against the frozen model
	$(BIN)/python -m benchmarks.speed.against_peft --length 20
	$(BIN)/python -m benchmarks.speed.against_peft --length 100
	$(BIN)/python -m benchmarks.speed.against_frozen
	$(BIN)/python -m benchmarks.speed.dept_t5_base
	$(BIN)/python -m benchmarks.speed.ept_t5_base
	$(BIN)/python -m benchmarks.speed.ptec_inference
	$(BIN)/python -m benchmarks.speed.serving

docs: $(STAMP)  ## the pages of the methods and the table of systems, from cards and results
	$(BIN)/python docs/build.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
