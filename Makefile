# One command per intent. `make` alone lists them.

PYTHON_FILES = agent ipam seed_server shoot_client lab benchmarks scripts tests
PYTEST = .venv/bin/python -m pytest
MAKEFLAGS += --no-print-directory

.DEFAULT_GOAL = help
.PHONY: help demo demo-kube down check test test-kube image-proof fuzz fmt bench soak docs clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1mmake %-11s\033[0m %s\n", $$1, $$2}' Makefile

demo: ## the main job, shown: seed to node, pod and service, through a tunnel the shoot dialled (root; KEEP=1 PROXY=kind)
	@scripts/setup demo
	@.venv/bin/python -m lab demo $(if $(KEEP),--keep) $(if $(PROXY),--proxy $(PROXY))

demo-kube: ## a real kube-apiserver uses the tunnel, shown with kubectl (root; the first time builds Kubernetes; WIRING=kind)
	@scripts/setup kube
	@scripts/kube-binaries
	@.venv/bin/python -m lab demo-kube $(if $(WIRING),--wiring $(WIRING))

down: ## remove what `make demo KEEP=1` left running
	@.venv/bin/python -m lab down

check: ## style, types, layers, and the tests that need no root: under a minute
	@scripts/setup check
	.venv/bin/ruff check --quiet $(PYTHON_FILES)
	.venv/bin/ruff format --quiet --check $(PYTHON_FILES)
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	$(PYTEST) -q -n 2 tests/unit tests/property tests/golden

test: ## all tests: also contracts, fuzzing, network namespaces and a real kernel (root; 20 to 30 minutes, by the machine)
	@scripts/setup test
	@$(MAKE) check
	$(PYTEST) tests/contract tests/fuzz tests/netns tests/kernel

test-kube: ## the real kube-apiserver, its users and the tunnel (root; the first time builds Kubernetes)
	@scripts/setup kube
	@scripts/kube-binaries
	$(PYTEST) tests/kube

image-proof: ## carry out the Dockerfile without a container engine, twice, and run what comes out (root, some 5 minutes)
	@scripts/setup image
	scripts/image-proof build/image-proof --figures build/image-proof/figures.json

fuzz: ## every fuzz target for ten minutes (SECONDS=600)
	@scripts/setup check
	RHIZOME_FUZZ_SECONDS=$(or $(SECONDS),600) $(PYTEST) -s tests/fuzz

fmt: ## put all Python files into the one format
	.venv/bin/ruff check --quiet --fix-only $(PYTHON_FILES)
	.venv/bin/ruff format --quiet $(PYTHON_FILES)

bench: ## the benchmarks behind docs/benchmarks.md (root; NAMES="relay tunnel" for some)
	@scripts/setup test
	.venv/bin/python -m benchmarks $(NAMES)

soak: ## the IPAM for long: a million steps of its state machine, 32 processes with kills; recorded in docs/benchmarks
	@scripts/setup check
	RHIZOME_SOAK_STEPS=1000000 RHIZOME_SOAK_OPERATIONS=10000 .venv/bin/python scripts/benchmarks.py record ipam_soak ipam_kills

docs: ## write again the documentation that is made from the code
	@scripts/setup check
	.venv/bin/python scripts/configuration.py
	.venv/bin/python -m scripts.charts

clean: ## remove what was built or cached here, but keep .venv
	rm -rf build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
