# Every task of the project. A fresh machine needs only python3 (3.10 or newer, with venv) and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DECLARED := settings.ini setup.py pyproject.toml constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable
RUN := runs/identify

# Papermill and nbclient must take the kernel of this environment, not one that the user has installed elsewhere.
export JUPYTER_PREFER_ENV_PATH := 1
export PYDEVD_DISABLE_FILE_VALIDATION := 1
# Threads that wait asleep: a little slower alone, but several times faster when something else keeps a core busy.
test test-notebooks test-python: export OMP_WAIT_POLICY := PASSIVE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test lint in-sync test-notebooks test-python lab notebooks export clean-notebooks docs docs-serve readme results studies tables surfaces images recipe trials held-out bench clean

help:  ## list every task
	@awk -F ':.*##' '/^[a-z-]+:.*##/ { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Stamps: an environment is installed once, and again when what it is made from changes.
$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "cegen needs Python 3.10 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made $(DECLARED)
	@echo "Installing cegen and Jupyter into $(VENV) (a few minutes the first time) ..."
	$(PIP_INSTALL) '.[notebooks,plots]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made $(DECLARED)
	@echo "Installing cegen and its development tools into $(VENV) (a few minutes the first time) ..."
	$(PIP_INSTALL) '.[dev,sweep,images,imagenetx]'
	@touch $@

demo: $(VENV)/.demo  ## run the main experiment (about 2 minutes) and print how well the latents were recovered
	@if [ -e $(RUN)/result.json ]; then rm -rf $(RUN)/result.json $(RUN)/checkpoints; fi; mkdir -p $(RUN)
	$(BIN)/python -m papermill --kernel python3 --no-progress-bar --log-output --log-level WARNING \
	  --parameters out $(RUN) nbs/experiments/identify.ipynb $(RUN)/identify.ipynb
	@$(BIN)/cegen report $(RUN)/result.json
	@echo "The executed notebook: $(RUN)/identify.ipynb"

test: lint in-sync test-notebooks test-python  ## everything that CI runs (sets up what it needs)

lint: $(VENV)/.dev  ## ruff on notebooks, package, tests and tools; mypy on the package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check tests tools setup.py
	$(BIN)/mypy

in-sync: $(VENV)/.dev  ## notebooks are clean and the package is what they export
	$(BIN)/python tools/check_sync.py

test-notebooks: $(VENV)/.dev  ## execute the reference and theory notebooks and the reports as tests
	$(BIN)/python tools/check_notebooks.py

test-python: $(VENV)/.dev  ## pytest: statistics, resume, project rules, experiments, wheel, site
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations=10

lab: $(VENV)/.demo  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab nbs

notebooks: $(VENV)/.dev  ## run the reference and theory notebooks and the reports again and store their outputs
	$(BIN)/python tools/run_notebooks.py
	$(BIN)/nbdev_clean

export: $(VENV)/.dev  ## write cegen/ from the notebooks
	$(BIN)/nbdev_export

clean-notebooks: $(VENV)/.dev  ## remove what does not belong into a committed notebook
	$(BIN)/nbdev_clean

docs: $(VENV)/.dev  ## render the site into _docs/
	$(BIN)/python tools/build_site.py

docs-serve: docs  ## render the site and serve it on http://localhost:8000
	$(BIN)/python -m http.server --bind localhost --directory _docs 8000

readme: $(VENV)/.dev  ## render README.md from nbs/index.ipynb
	$(BIN)/python tools/render_readme.py

results: $(VENV)/.dev  ## compute the front page's table and picture again (six runs, some minutes)
	$(BIN)/python tools/front_page.py

studies: $(VENV)/.dev  ## run what the pages of nbs/theory tell of again (an hour); studies that are there are kept
	@mkdir -p runs
	for study in nbs/experiments/falsify_*.ipynb; do \
	  $(BIN)/python -m papermill --kernel python3 --no-progress-bar -p steps 1000 -y 'seeds: [0, 1, 2]' \
	    -p out results/falsification $$study runs/$$(basename $$study) || exit 1; done
	$(BIN)/python -m papermill --kernel python3 --no-progress-bar -p steps 1000 -y 'seeds: [0, 1, 2]' \
	  -p out results nbs/experiments/relatives.ipynb runs/relatives.ipynb
	$(BIN)/python tools/minimum_runs.py

tables: $(VENV)/.dev  ## run the paper's tables 2 and 3 as sweeps, five seeds a row (hours); rows that are there are kept
	$(BIN)/python tools/tables.py

surfaces: $(VENV)/.dev  ## run the ablations as a sweep, three seeds a cell (half an hour); surfaces that are there are kept
	$(BIN)/python tools/surfaces.py

images: $(VENV)/.dev  ## run the image experiments of the reports, three seeds (an hour); runs that are there are kept
	$(BIN)/python tools/images.py

recipe: $(VENV)/.dev  ## change one thing at a time about the recipe, three seeds (half an hour); runs that are there are kept
	$(BIN)/python tools/recipe.py

trials: $(VENV)/.dev  ## run what was tried where rows of the tables fall short (over an hour); trials that are there are kept
	$(BIN)/python tools/trials.py

held-out: $(VENV)/.dev  ## run the hard rows of the tables in worlds that no setting was chosen in (over an hour); runs that are there are kept
	$(BIN)/python tools/held_out.py

bench: $(VENV)/.dev  ## measure sampler, step, accuracy over time, memory and imports on this machine, and its GPU if there is one (a quarter of an hour, alone)
	$(BIN)/python tools/bench.py
	$(BIN)/python tools/gpu.py

clean:  ## remove what was built here; runs/ and the environment in .venv stay
	rm -rf _proc _docs build dist *.egg-info nbs/nbdev.yml
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
