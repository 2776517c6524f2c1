# make up        the stack without Docker, with three replicas; SECURE=1: with TLS and ACLs
# make down      stops it
# make bench     measures and writes docs/benchmarks.md; QUICK=1: four minutes, to the terminal
# make test      all tests; `make lint` and `make unit` are parts of it
# make chaos     the tests of faults in full; writes docs/reliability.md; SECURE=1: with the secure stack, writes nothing
# make chaos-swarm   those of three nodes; writes docs/reliability-swarm.md
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CALLER := secrets/caller
TLS := $(if $(SECURE),--tls --cacert $(CALLER)/callers-ca.pem --cert $(CALLER)/tls.pem --key $(CALLER)/tls-key.pem)

.PHONY: up down test lint unit integration faults foreign e2e chaos chaos-swarm bench protos pictures clean

up: $(VENV)/installed
	$(if $(SECURE),$(BIN)/python -m local_stack secure)
	$(BIN)/python -m local_stack up -d --scale hello_server=3 $(if $(SECURE),--secure)
	$(BIN)/python -m grpc_client --port 5000 $(TLS)
	$(BIN)/python -m grpc_client --port 5000 $(TLS)
	$(BIN)/python -m grpc_client --port 5000 $(TLS)
	$(if $(SECURE),! $(BIN)/python -m grpc_client --port 5000 --timeout 5)
	@echo "gRPC: 127.0.0.1:5000   Consul UI: http$(if $(SECURE),s)://localhost:8500/ui/dc1/services   stop: make down"

down: $(VENV)/installed
	$(BIN)/python -m local_stack down -v

test: lint unit integration faults foreign e2e

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

unit: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/unit

integration: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/integration

faults: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/chaos

foreign: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/foreign

e2e: $(VENV)/installed-dev
	$(BIN)/python -m pytest tests/e2e

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

chaos: $(VENV)/installed-dev
	CHAOS=full SECURE=$(SECURE) CHAOS_REPORT=$(if $(SECURE),,docs/reliability.md) $(BIN)/python -m pytest tests/chaos

chaos-swarm: $(VENV)/installed-dev
	CHAOS=full CHAOS_REPORT=docs/reliability-swarm.md $(BIN)/python -m pytest tests/e2e/test_swarm.py

protos: $(VENV)/installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. --mypy_grpc_out=. protos/api.proto

pictures: $(VENV)/installed-dev
	UPDATE_DOCS=1 $(BIN)/python -m pytest tests/integration/test_consul_ui.py tests/integration/test_load_picture.py

clean:
	rm -rf $(VENV)

$(VENV)/installed: pyproject.toml
	sh local_stack/make-venv $(PYTHON) $(VENV) cli
	touch $@

$(VENV)/installed-dev: pyproject.toml
	sh local_stack/make-venv $(PYTHON) $(VENV) dev
	touch $(VENV)/installed $@

$(VENV)/installed-bench: pyproject.toml
	sh local_stack/make-venv $(PYTHON) $(VENV) bench
	touch $(VENV)/installed $@
