# make demo: the whole pipeline on the embedded archive.  make test: the tests; make long: the long forms of some.
# make lint: style and types.  make docs: the site of docs/ in build/site.  make dist: wheel and sdist, built and tried.
# make cluster-test: the batch scripts and the image on a real, throw-away SLURM.
# make gpu-check: packs what a machine with one GPU and no network lacks, and says what to run there (tests/gpu/README.md).
# Each sets up .venv by itself. PYTHON names another interpreter: make demo PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export PYTHONDONTWRITEBYTECODE :=  # dozens of processes would each compile the package anew
# File by file in the order of tests/conftest.py: the longest first.
WORKERS := --dist loadfile --no-loadscope-reorder

.PHONY: demo test browser cluster-test cluster-tools long gpu-check quick mutants lint docs dist format setup clean

demo: $(READY)
	$(BIN)/cloudjob run configs/demo.yaml --run-dir runs/demo

test: $(READY) browser
	$(BIN)/pytest -m "not long" --ignore=tests/cluster -n $$(expr $$(nproc) + 1) $(WORKERS)  # one more than there are cores: some tests wait

# Output as it comes: it shows the image's size and packages, and what the jobs say.
cluster-test: $(READY) cluster-tools
	$(BIN)/pytest -s -m "not long" --durations=10 tests/cluster

# The long forms of tests whose short forms the two above run.
long: $(READY) cluster-tools
	$(BIN)/pytest -m long

# SLURM, Apptainer and what builds an image, where they may be installed; without them the tests say what they skip.
cluster-tools:
	@tests/cluster/install.sh || echo "*** NO CLUSTER: the tests of the batch scripts or the image will be skipped ***"

gpu-check: .gpu/site.tar.xz
	@du -h $<
	@echo "Copy the checkout, with .gpu/, to a machine with one GPU. Run there, one after the other:"
	@for part in smoke bench train; do echo "  bash tests/gpu/check.sh $$part"; done

.gpu/site.tar.xz: tests/gpu/pack.py tests/gpu/present.txt pyproject.toml constraints.txt | $(READY)
	$(BIN)/python tests/gpu/pack.py $@

# The review page is tested in a real browser.
browser:
	@test -x /usr/bin/chromium -a -x /usr/bin/chromedriver || { test "$$(id -u)" = 0 && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver \
	  >/dev/null; } || echo "no chromium and chromium-driver (apt-get): the test of the review page will be skipped"

quick: $(READY)
	$(BIN)/pytest -m "not slow" --ignore=tests/cluster -n $$(expr $$(nproc) + 1) $(WORKERS)

# How many of 200 small faults the unit tests miss: up to an hour, so not in CI. tests/mutants.md excuses some.
mutants: $(READY)
	$(BIN)/python tests/mutants.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Strict: a link or a heading that is not there, and a page that stands in no menu, are errors.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # not --quiet: it does not count what it does not say
	@echo "build/site/index.html"

# Each is installed into an environment of its own, beside the packages of .venv, and asked for its version.
dist: $(READY)
	tests/dist.sh $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cloudjob needs Python 3.11 or newer; try: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv .venv || { \
	  if [ "$$(id -u)" = 0 ]; then apt-get update -q && apt-get install -y -q python3-venv && $(PYTHON) -m venv .venv; \
	  else echo "python3-venv is missing; ask for: apt-get install python3-venv"; exit 2; fi; }
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[mpi,tensorboard,zstd,s3,test,docs]"
	@touch $@

clean:
	rm -rf .venv .gpu gpu-out runs build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
