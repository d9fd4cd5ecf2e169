# Needs nothing but Python 3.11 or newer and make; everything else goes into .venv.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
LOWEST := .venv-lowest
PROTO := kapudf_cli/protocol/udf
RECORDINGS := tests/recordings
# The tests wait a good part of their time: half as many processes again as there are cores.
JOBS ?= $(shell echo $$(($$(nproc) * 3 / 2)))

# What depends on the versions of the dependencies.
CORE_TESTS := tests/protocol tests/tickscript tests/handler tests/agent tests/handlers tests/influx_scripts \
	tests/recordings tests/test_captures.py

# Where the environment forbids compiled modules, each process would compile all modules again,
# which doubles the time of the tests.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo serve docs man pictures test test-docs test-lowest test-long test-ray test-deploy coverage soak bench bench-kapacitor check format proto clean

help:
	@echo 'make demo       serve a handler, send recordings of Kapacitor through it and others, see what they change'
	@echo 'make serve      serve the mirror handler on /tmp/mirror.sock until Ctrl-C'
	@echo 'make test       run the tests that every change must pass (about 7 minutes on two cores)'
	@echo 'make test-lowest  run the core tests with the lowest versions of the dependencies (about 3 minutes)'
	@echo 'make test-long  run the fuzz, soak and long process tests (about 3 minutes)'
	@echo 'make test-ray   run the tests with a Ray cluster of two nodes on this machine (about 5 minutes)'
	@echo 'make test-deploy  run the tests with Prometheus, containers and systemd, where these are installed'
	@echo 'make docs       build the documentation site into build/docs'
	@echo 'make man        write the man pages into build/man; a wheel has them, too'
	@echo 'make pictures   draw the pictures of the documentation again'
	@echo 'make test-docs  build the site and test it in Chromium, where that is installed'
	@echo 'make coverage   run all tests and report which lines no test reaches (takes much longer)'
	@echo 'make soak       kill 250 workers and reload 50 times under load, serve 2,000 connections'
	@echo 'make bench      measure, beside a raw echo and a plain agent (about five minutes)'
	@echo 'make bench-kapacitor  measure mirror UDFs behind a real kapacitord (about two minutes)'
	@echo 'make check      check style, types and that the generated files are up to date'
	@echo 'make format     format the code'
	@echo 'make proto      regenerate the descriptor set and the types of the messages'

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'kapudf needs Python 3.11 or newer; name one: make PYTHON=python3.12'; exit 1; }
	@echo 'Installing into .venv (once, about a minute) ...'
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]' --constraint constraints.txt
	@touch $@

# The first part is by a server on a socket of its own, which is stopped whatever happens. The
# socket is there before the handler is loaded, and accepts connections only then.
demo: $(INSTALLED)
	@folder=$$(mktemp -d) && socket=$$folder/mirror.sock && \
	echo "$(BIN)/kapudf serve --socket $$socket --handler mirror &" && \
	{ $(BIN)/kapudf serve --socket $$socket --handler mirror --log-level warning & server=$$!; } && \
	trap 'kill $$server 2>/dev/null; wait $$server; rm -rf $$folder' EXIT && \
	tries=0 && until $(BIN)/kapudf probe --socket $$socket >/dev/null 2>&1; do \
		kill -0 $$server && [ $$((tries += 1)) -le 100 ] && sleep 0.1 || exit 1; \
	done && \
	echo "$(BIN)/kapudf replay $(RECORDINGS)/stream.srpl --limit 5 --diff \\" && \
	echo "	--socket $$socket --options \".field('mycustom_field', 42.0)\"" && \
	$(BIN)/kapudf replay $(RECORDINGS)/stream.srpl --limit 5 --diff \
		--socket $$socket --options ".field('mycustom_field', 42.0)"
	@echo
	$(BIN)/kapudf replay $(RECORDINGS)/stream.srpl --limit 5 --diff --group-by host \
		--handler moving-average --options ".field('usage_idle').size(3)"
	@echo
	$(BIN)/kapudf replay $(RECORDINGS)/batch.brpl --limit 2 --format table \
		--handler outliers --options ".field('usage_idle').scale(1.5)"

serve: $(INSTALLED)
	$(BIN)/kapudf serve --socket /tmp/mirror.sock --handler mirror --remove-stale

# Every warning is an error, so a link that leads nowhere is one.
docs: $(INSTALLED)
	$(BIN)/python -m sphinx -q -W --keep-going -d build/doctrees -c docs/site docs build/docs
	@echo 'The site is in build/docs: open build/docs/index.html.'

man: $(INSTALLED)
	$(BIN)/python hatch_build.py build/man

pictures: $(INSTALLED)
	$(BIN)/python docs/site/terminal_picture.py docs/images/replay-diff.svg
	$(BIN)/kapudf replay $(RECORDINGS)/batch.brpl --handler outliers --plot docs/images/replay-plot.svg \
		--options ".field('usage_idle').scale(1.5)" > /dev/null

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS)

# The lowest versions have an environment of their own, with the test tools of the other one.
$(LOWEST)/installed: pyproject.toml constraints.txt constraints-lowest.txt
	@echo 'Installing the lowest versions into $(LOWEST) (once, about a minute) ...'
	@$(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --editable '.[metrics,numpy,reload,stats]' \
		$$(grep -E '^(hypothesis|pytest|pytest-timeout|pytest-xdist)==' constraints.txt) \
		--constraint constraints-lowest.txt
	@touch $@

test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest -n $(JOBS) $(CORE_TESTS)

# Its processes start as a user starts them, not by fork: see tests/forked.py.
test-long: $(INSTALLED)
	@echo 'The long tests take about 3 minutes on two cores.'
	KAPUDF_TESTS_EXEC=1 $(BIN)/python -m pytest -n $(JOBS) -m '(long or hypothesis) and not ray' \
		--hypothesis-profile long --timeout 300 --durations 10

# Needs chromium of Debian; skips the tests without it.
test-docs: docs
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[browser]' --constraint constraints.txt
	$(BIN)/python -m pytest -m browser tests/site

# One after the other: a cluster takes both cores of a small machine.
test-ray: $(INSTALLED)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[ray]' --constraint constraints.txt
	$(BIN)/python -m pytest -m 'ray and not long' --timeout 600 --durations 10 tests/ray_engine

# Needs prometheus, podman, buildah, runc and debootstrap of Debian; skips the tests that lack one.
test-deploy: $(INSTALLED)
	$(BIN)/python -m pytest -m deploy --timeout 900 --durations 10 tests/deploy

# Tracing doubles the time of the tests, and needs processes that start by exec.
coverage: $(INSTALLED)
	rm -f .coverage .coverage.*
	KAPUDF_TESTS_EXEC=1 $(BIN)/python -m coverage run -m pytest -n $(JOBS) -m 'long or not long' --timeout 300
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

soak: $(INSTALLED)
	KAPUDF_SOAK_KILLS=250 KAPUDF_SOAK_RELOADS=50 KAPUDF_SOAK_CONNECTIONS=2000 \
	$(BIN)/python -m pytest -m 'long or not long' --timeout 900 \
		tests/supervisor/test_takeover.py tests/supervisor/test_reload.py tests/supervisor/test_many_connections.py \
		tests/supervisor/test_async_handlers.py

# BENCH passes options on: make bench BENCH='--quick --against go=/tmp/go.sock'
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks $(BENCH)

# Needs kapacitord and kapacitor, on PATH or as KAPACITORD and KAPACITOR say.
bench-kapacitor: $(INSTALLED)
	$(BIN)/python -m benchmarks.kapacitor $(BENCH)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy hatch_build.py kapudf_cli handlers compat benchmarks tests
	@$(MAKE) --no-print-directory proto-drift

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Writes the descriptor set and the types into a folder.
protoc = $(BIN)/python -m grpc_tools.protoc -I proto --pyi_out=$(1) \
	--descriptor_set_out=$(1)/$(PROTO).binpb $(PROTO).proto

proto: $(INSTALLED)
	$(call protoc,.)

# Generates into a folder of its own and compares with what is committed.
.PHONY: proto-drift
proto-drift: $(INSTALLED)
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && mkdir -p "$$fresh/$(dir $(PROTO))" && \
	$(call protoc,"$$fresh") && \
	cmp $(PROTO).binpb "$$fresh/$(PROTO).binpb" && \
	diff -u $(PROTO)_pb2.pyi "$$fresh/$(PROTO)_pb2.pyi" || \
		{ echo 'the generated files are not those of proto/: run make proto'; exit 1; }

clean:
	rm -rf .venv $(LOWEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* build dist
