# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up `.venv` themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
ARGS ?=

.PHONY: demo test test-long test-vm test-vm-long again model check format venv packages kernels package peers lock clean

demo: venv  ## a parked car earns, and the driver comes back in the middle
	$(BIN)/driveway-hil demo $(ARGS)

test: venv packages check  ## what must hold, as far as it takes under ten minutes
	$(BIN)/pytest -n 3 -m "not vm and not long" $(ARGS)

test-long: venv packages  ## the rest: fleets, faults and cheats with real processes, each for ten seconds and more
	$(BIN)/pytest -n 2 -m long $(ARGS)

again:  ## what failed in the last run, one at a time
	$(BIN)/pytest --last-failed --last-failed-no-failures none -rA $(ARGS)

model: venv packages  ## the protocol's model within wider bounds (some minutes, 6 GB of memory)
	DRIVEWAY_MODEL_WIDE=1 $(BIN)/pytest tests/test_model.py $(ARGS)

check: venv  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(STAMP)  ## .venv with all that developing needs; quick when nothing changed

$(STAMP): .ci/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "driveway needs Python 3.11 or newer; set PYTHON=python3.11 (this is $$($(PYTHON) --version))"; exit 1; }
	@echo "setting up $(VENV) (about 0.5 GB, under a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
		echo "could not make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r .ci/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

packages: venv  ## what some tests use: Debian packages, pycuda, TensorRT's bindings; says what is missing and what that skips
	@sh .ci/packages
	@sh .ci/cuda

kernels: venv  ## the CUDA kernels for every accelerator we know, with their manifest, in build/kernels
	$(BIN)/python -m kernels.build build/kernels

package: venv  ## what a vehicle installs, in dist/: the .deb, its bill of materials, a signed bundle (docs/install.md)
	$(BIN)/python -m systemd.package $(ARGS)

test-vm: venv  ## a vehicle in a container and in a VM, with its package (as root; minutes)
	@sh .ci/packages vm
	$(BIN)/pytest -m vm tests/vm $(ARGS)

test-vm-long: venv  ## fifty power cuts in the middle of updates (hours)
	@sh .ci/packages vm
	DRIVEWAY_VM_CUTS=50 $(BIN)/pytest -m vm tests/vm/test_vehicle_update.py $(ARGS)

peers:  ## what benchmarks are held against: Celery in .venv-peers, and a Redis server
	@PYTHON="$(PYTHON)" sh .ci/peers

lock:  ## pin every dependency with its hashes (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		--no-emit-index-url --no-emit-package driveway-agent --extra dev pyproject.toml -o .ci/requirements.txt
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		--no-emit-index-url --no-emit-package driveway-agent -c .ci/requirements.txt --overrides .ci/vehicle-overrides.txt \
		--extra can --extra cpu --extra kuksa --extra nvml --extra opendbc --extra pkcs11 --extra tuf \
		pyproject.toml -o .ci/requirements-vehicle.txt
	uv pip compile --python-version 3.10 --python-platform aarch64-manylinux_2_35 --generate-hashes --no-annotate \
		--no-header --no-emit-index-url .ci/worker.in -o .ci/requirements-worker.txt

clean:
	rm -rf $(VENV) .venv-peers build dist .mypy_cache .ruff_cache .hypothesis
