"""Prints what the reliability tests have measured."""

import pytest

from tests.reliability.figures import FIGURES, counted


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines := FIGURES + counted():
        terminalreporter.section("reliability")
        for line in lines:
            terminalreporter.write_line(line)
