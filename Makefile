# make setup | demo | docs | test | slow | torture | lint | format.  PYTHON chooses the interpreter (3.11 or newer) the first time.

PYTHON ?= python3
BIN    := .venv/bin
EXTRAS := demo,log,cam,vips,openslide,dicom,zarr,geo,serve,int8,dev
RUN    := runs/demo

.PHONY: setup demo docs test slow torture lint format
.DELETE_ON_ERROR:

setup: .venv/installed

# Installing again costs minutes, so a stamp remembers which pyproject.toml was installed.
.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

demo: setup
	$(BIN)/foveal fit demo --out $(RUN) --overwrite
	$(BIN)/foveal evaluate $(RUN) --locations 0..4
	$(BIN)/foveal data $(RUN) --data.train 0 --data.val 0 --export $(RUN)/images --count 4
	$(BIN)/foveal predict $(RUN) $(RUN)/images --out $(RUN)/predictions.csv --overwrite
	$(BIN)/foveal explain $(RUN) $(RUN)/images/0_0.png --out $(RUN)/report.html

# The variable silences a notice of the theme that is no warning of ours.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal

slow: setup
	$(BIN)/python -m pytest -m slow

# Hours on two cores. PARTS=mutants runs a part; see benchmarks/torture/__main__.py.
torture: setup
	$(BIN)/python benchmarks/torture $(PARTS) --out benchmarks/results/torture.json
	$(BIN)/python benchmarks/render.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
