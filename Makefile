# make lab        set up and open the course in JupyterLab (ARGS=--no-browser on a server)
# make lab-zh     the same in Chinese: 中文课程
# make demo       set up and train on two real ranks, without a browser
# make test       set up and run every test
# make site       the course as web pages, in build/site
# make buttons    links to a real kernel, from the address that pyproject.toml has for the course
# make slides     each notebook as slides with its figures, in build/slides
# make serve      the same, shown at http://127.0.0.1:8000, where its explorables move
# make recordings what pages show of a real machine, recorded on this one
# make notebooks  execute all notebooks and their Chinese twins, and write their outputs
# make replay     run each cell of the notebooks twice, and each section backwards
# make steady     run 04 to 06 five times, name committed sentences that a run makes false
# make bench      timings, beside the alternatives, in one run
# make soak       random kills, interrupts, prompts and hangs; many launches; many kernels at once
# make gallery    the README's pictures: the demo, and the explorables as JupyterLab shows them
# make lint       format, lint, arrows between wings, types and spelling
# make matrix     the tests that matter, with other versions of Python, torch and the rest; hours
# make mutants    how many small mistakes in the code its tests notice (ARGS=data: one wing)

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
DEV    := $(VENV)/.ready-dev
SITE   := $(VENV)/.ready-site
MUTANTS := $(VENV)/.ready-mutants
ARGS   ?=
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: lab lab-zh demo test site serve recordings buttons slides notebooks replay steady bench soak gallery lint mutants matrix
.PHONY: clean
.DELETE_ON_ERROR:

lab: $(READY)
	$(BIN)/jupyter lab $(ROOT_FLAG) --ServerApp.root_dir=. $(ARGS) notebooks/00_check_your_machine.ipynb

# what ddp_helpers prints is Chinese, too; JupyterLab's own words, if its language pack is there
lab-zh: $(READY)
	DDP_HELPERS_LANG=zh_CN $(BIN)/jupyter lab $(ROOT_FLAG) --ServerApp.root_dir=. $(ARGS) \
	  notebooks/zh_CN/00_check_your_machine.ipynb

demo: $(READY)
	$(BIN)/python -m ddp_helpers train $(ARGS)

# Three at once: on two cores, half of a test is waiting for what its ranks wait for.
test: $(DEV) $(SITE)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

site: $(SITE)
	$(BIN)/python .site/build.py $(ARGS)

buttons: $(DEV)
	$(BIN)/python .site/kernels.py
	$(BIN)/python tests/notebooks/translate.py

slides: $(READY)
	$(BIN)/python .site/slides.py $(ARGS)

serve: site
	$(BIN)/python .site/serve.py --port $(or $(PORT),8000)

recordings: $(DEV)
	$(BIN)/python .site/play/record.py
	$(BIN)/python .site/runs/record.py
	$(BIN)/python .site/demo/record.py

notebooks: $(DEV)
	$(BIN)/python tests/notebooks/build.py $(ARGS)
	$(BIN)/python tests/notebooks/translate.py
	$(BIN)/python tests/notebooks/build.py --language zh_CN $(ARGS)

replay: $(DEV)
	$(BIN)/python tests/notebooks/replay.py $(ARGS)

steady: $(DEV)
	$(BIN)/python tests/notebooks/steady.py $(ARGS)

bench: $(DEV) $(SITE)
	$(BIN)/python tests/benchmarks/bench_launch.py $(ARGS)
	$(BIN)/python tests/benchmarks/bench_sanitizer.py
	$(BIN)/python tests/benchmarks/bench_training.py
	$(BIN)/python tests/benchmarks/bench_widgets.py
	$(BIN)/python .site/build.py
	$(BIN)/python tests/benchmarks/bench_site.py
	$(BIN)/python tests/benchmarks/bench_scaling.py
	$(BIN)/python tests/benchmarks/bench_seats.py

soak: $(DEV)
	$(BIN)/python tests/benchmarks/soak_launch.py --rounds 300 $(ARGS)
	$(BIN)/python tests/benchmarks/soak_launch.py --correct 500
	$(BIN)/python tests/benchmarks/soak_launch.py --kernels 30
	$(BIN)/python tests/benchmarks/soak_classroom.py --seats 30
	$(BIN)/python tests/benchmarks/soak_templates.py

gallery: $(DEV)
	$(BIN)/python .site/demo/picture.py
	$(BIN)/python tests/browser/gallery.py $(ARGS)

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	git ls-files -z | xargs -0 $(BIN)/codespell

mutants: $(MUTANTS)
	$(BIN)/python tests/mutation/run.py $(ARGS)

matrix:
	$(PYTHON) tests/matrix/run.py $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info runs .site/node_modules

# What a learner needs; environment.yml runs the same.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$($(PYTHON) --version) found, expected Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "error: this Python has no venv module: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

# What tests, lint and the making of notebooks need more.
$(DEV): $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# What the site and its tests need more.
$(SITE): $(READY) .site/package-lock.json
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[site]'
	@npm ci --prefix .site --no-audit --no-fund || \
	  echo "no npm, or no network for it: the site's explorables will stand still, as pictures"
	@touch $@

$(MUTANTS): $(DEV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[mutants]'
	@touch $@
