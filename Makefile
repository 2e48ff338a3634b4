# Two commands for a newcomer: `make demo` and `make test`.
BIN := .venv/bin
TESTED := (3, 11) <= sys.version_info[:2] <= (3, 13)
# The first on the path that is tested. Each is run: a name can be there without its Python.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
    $$name -c 'import sys; sys.exit(not $(TESTED))' 2>/dev/null && command -v $$name && break; done)

.PHONY: demo setup check test cluster cluster-stop clean

demo: setup  ## set-up, then the main job on embedded data
	@echo "The main job, small: five networks learn 5,000 handwritten digits. About a minute on 2 cores; 50 MB in runs/."
	$(BIN)/python sweeps/scale.py --smoke

setup: .venv/.installed  ## a virtual environment with the tested set

.venv/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed, and none is on the path: install one (Debian, Ubuntu: apt install python3-venv), or run make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(0 if $(TESTED) else "Python 3.11, 3.12 or 3.13 is needed, {} is {}.{}: run make PYTHON=/path/to/python".format(sys.executable, *sys.version_info))'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(PYTHON) -c 'import sys; print("Python\x27s venv is missing: apt install python{}.{}-venv".format(*sys.version_info))'; exit 1; }
	@test -e .venv || df -Pk . | awk 'NR == 2 && $$4 < 9e6 { print "The set-up takes 9 GB of disk, and " int($$4 / 1e6) " GB are free here."; exit 1 }'
	@echo "Set-up, once: $$($(PYTHON) -V) and its packages in .venv. It loads 4 GB, takes 9 GB of disk and some minutes."
	@test "$$($(BIN)/python -V 2>&1)" = "$$($(PYTHON) -V)" || $(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

check: setup  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error

test: check  ## everything that is checked, here and in CI; plain pytest does it in one process
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 10 --durations-min 5

cluster: setup  ## a Ray cluster of three nodes on this machine, for trying
	bash cluster/local.sh start

cluster-stop:  ## stop it, and no other Ray
	bash cluster/local.sh stop

clean:
	rm -rf .venv build *.egg-info
