# The checks. Uses the environment that the README's test command makes; another one: make check BIN=/path/to/bin
BIN ?= .venv/bin

.PHONY: check format lint types imports test slow exhaustive docs

check: lint types imports test

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types:
	$(BIN)/mypy

imports:
	$(BIN)/lint-imports

test:
	$(BIN)/pytest

slow:
	$(BIN)/pytest -m "slow and not exhaustive"

exhaustive:
	$(BIN)/pytest -s -m exhaustive

# Regenerates the three reference pages that tests/test_docs.py compares with the code.
docs:
	$(BIN)/python -c 'from pathlib import Path; from tuitrain.config.fields import write_config_docs; from tuitrain.runs.event_docs import write_event_docs; from tuitrain.tui.key_docs import write_key_docs; write_config_docs(Path("docs/config.md")); write_event_docs(Path("docs/events.md")); write_key_docs(Path("docs/keys.md"))'
