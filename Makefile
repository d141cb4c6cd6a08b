# make demo        caption rendered scenes with the embedded model on this machine
# make test        the test suite, without what is slow by nature
# make test-all    everything, under an hour and a half
# make compat      a smoke set under other versions of Ray and vLLM, and a table of it (docs/compatibility.md)
# make docs        serve the documentation on this machine
# make lint        ruff and mypy
# make chaos       N=200: so many runs in which drawn parts of the job are killed, and a table of them
# make fuzz        ten minutes of coverage-guided fuzzing of the tar reader and the image guard
# make audit       the locked packages in the advisory databases (needs the internet)
# make setup       build .venv (the others do it themselves); EXTRA=gpu for a machine with GPUs
# make lock        resolve requirements/cpu.lock anew from pyproject.toml; EXTRA=gpu: gpu.lock, of a cluster's nodes
# make embedded    train the embedded captioner from scratch (under an hour on two cores)

PYTHON ?= python3.11
EXTRA ?= cpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(EXTRA)

N ?= 20

# What the promises rest on, run again with Ray's and vLLM's internals switched off.
PLAIN_TESTS := tests/test_pipeline.py tests/test_second_job.py tests/faults tests/chaos -m 'not slow'

.PHONY: demo test test-all compat docs lint chaos fuzz audit setup lock embedded clean

demo: setup
	$(BIN)/caprl-ray demo

test: setup
	$(BIN)/python -m pytest -m 'not slow'

test-all: setup
	$(BIN)/python -m pytest
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

# The auditor has an environment of its own, so that nothing of it is in a captioning job's.
audit:
	test -x $(VENV)-audit/bin/python || $(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/audit.lock
	$(VENV)-audit/bin/python requirements/audit.py $(VENV)-audit/bin/pip-audit

setup: $(READY)

# The CPU environment is locked with hashes. --no-deps: the lock is complete but for packages that are left out on
# purpose (requirements/lock.py says which and why).
$(VENV)/.ready-cpu: requirements/cpu.lock requirements/torchvision_cpu_ops.py requirements/torchvision_cpu_ops.pth pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "requirements/cpu.lock holds the packages for Python 3.11. Use PYTHON=python3.11, or pip install (docs/compatibility.md).")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --requirement requirements/cpu.lock
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

clean:
	rm -rf $(VENV) $(VENV)-audit
