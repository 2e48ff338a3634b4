# Two commands for a newcomer: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo setup check test cluster cluster-stop clean

demo: setup  ## set-up, then the main job on embedded data
	$(BIN)/python sweeps/scale.py --smoke

setup: .venv/.installed  ## a virtual environment with the tested set

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else f"Python 3.11 is needed, {sys.executable} is {v[0]}.{v[1]}: install it, or run make PYTHON=/path/to/python3.11")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python's venv is missing: apt install python3.11-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "Installing about 7 GB of packages; a few minutes on a fast line."
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

check: setup  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error

test: check  ## everything that is checked, here and in CI; plain pytest does it in one process
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

cluster: setup  ## a Ray cluster of three nodes on this machine, for trying
	bash cluster/local.sh start

cluster-stop:  ## stop it, and no other Ray
	bash cluster/local.sh stop

clean:
	rm -rf .venv build *.egg-info
