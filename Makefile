# make demo: sets up and runs the main job on real data; make test: sets up and runs the suite.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint bench clean

$(VENV)/demo.stamp: setup.cfg setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[pyatb,model]"
	@touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[pyatb,abacus,model,train,sisl,test]"
	@touch $@

setup: $(VENV)/test.stamp

demo: $(VENV)/demo.stamp
	@mkdir -p demo
	@cd demo && for name in 01_bands 02_optics 04_native_h0 05_predict; do \
		../$(BIN)/python ../examples/$$name.py || exit 1; done

test: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# those that need a data set or a choice are run by hand: see what each says of itself
BENCHMARKS := $(filter-out $(addprefix benchmarks/,ablations.py heads.py native_h0.py \
	training_overfit.py uncertainty.py),$(wildcard benchmarks/*.py))

bench: $(VENV)/test.stamp
	@for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build demo
