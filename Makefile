# make demo        caption and score rendered scenes with the embedded models on this machine
# make loop        CapRL's whole loop on rendered scenes: curate questions, train by GRPO, evaluate before and after
# make test        run the test suite without the slow tests
# make test-all    run all tests (up to an hour and a half)
# make compat      run a smoke test under other versions of Ray and vLLM; print a table (docs/compatibility.md)
# make docs        serve the documentation on this machine
# make lint        run ruff and mypy
# make chaos       N=200: run the job 200 times, kill random parts of it, check the outputs and print a table
# make fuzz        ten minutes of coverage-guided fuzzing of the tar reader and of image decoding
# make audit       check the locked packages against advisory databases (needs the internet)
# make setup       build .venv (the other targets do it themselves); EXTRA=gpu on a machine with GPUs
# make lock        write requirements/cpu.lock from pyproject.toml; with EXTRA=gpu, gpu.lock for the nodes of a cluster
# make embedded    train the embedded captioner from scratch (under an hour on two cores)
# make embedded-answerer   train the embedded answerer from scratch (a quarter of an hour on one core)

PYTHON ?= python3.11
EXTRA ?= cpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(EXTRA)

N ?= 20

BY_FILE := --dist loadfile --no-loadscope-reorder

# The tests that the promises depend on. They also run, with the stub engine, without Ray's internals.
PLAIN_TESTS := tests/test_pipeline.py tests/test_second_job.py tests/faults tests/chaos -m 'not slow'

.PHONY: demo loop test test-all compat docs lint chaos fuzz audit setup lock embedded embedded-answerer clean

demo: setup
	$(BIN)/caprl-ray demo

loop: setup
	$(BIN)/python -m caprl_ray.commands.loop

# Tests without Ray and engines run in four processes, because they wait for nearly half of their time. The others run
# in two, each with a Ray of its own; with three, they wait for each other on two cores. Files that take longest begin
# first (tests/conftest.py).
test: setup
	$(BIN)/python -m pytest -n 4 $(BY_FILE) -m 'not slow and not cluster'
	$(BIN)/python -m pytest -n 2 $(BY_FILE) -m 'not slow and cluster'

test-all: setup
	$(BIN)/python -m pytest -n 4 $(BY_FILE) -m 'not cluster'
	$(BIN)/python -m pytest -n 3 $(BY_FILE) -m 'not slow and cluster'
	$(BIN)/python -m pytest -m 'slow and cluster'
	CAPRL_RAY_PLAIN=1 $(BIN)/python -m pytest $(PLAIN_TESTS)

compat: setup
	$(BIN)/python -m tests.compat

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet

docs: setup
	$(BIN)/mkdocs serve

chaos: setup
	$(BIN)/python -m tests.chaos --runs $(N)

fuzz: setup
	$(BIN)/python -m tests.fuzz tar -max_total_time=300
	$(BIN)/python -m tests.fuzz image -max_total_time=300

# The audit tool has its own environment, so that its packages are never part of a captioning job.
audit:
	test -x $(VENV)-audit/bin/python || $(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/audit.lock
	$(VENV)-audit/bin/python requirements/audit.py $(VENV)-audit/bin/pip-audit

setup: $(READY)

# The CPU environment is locked with hashes. --no-deps, because the lock is complete, except for packages that are left
# out on purpose (requirements/lock.py says which ones and why).
$(VENV)/.ready-cpu: requirements/cpu.lock requirements/install.py requirements/torchvision_cpu_ops.py requirements/torchvision_cpu_ops.pth pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python requirements/install.py
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	cp requirements/torchvision_cpu_ops.py requirements/torchvision_cpu_ops.pth \
	  "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	rm -f $(VENV)/.ready-*
	touch $@

$(VENV)/.ready-gpu: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[gpu,dev]'
	rm -f $(VENV)/.ready-*
	touch $@

lock:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python requirements/lock.py $(EXTRA)

embedded: setup
	$(BIN)/python -m caprl_ray.embedded.train --out caprl_ray/embedded/model

embedded-answerer: setup
	$(BIN)/python -m caprl_ray.embedded.train_answerer --out caprl_ray/embedded/answerer

clean:
	rm -rf $(VENV) $(VENV)-audit
