"""Prints what the reliability tests have measured."""

import pytest

from tests.reliability.figures import FIGURES


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if FIGURES:
        terminalreporter.section("reliability")
        for line in FIGURES:
            terminalreporter.write_line(line)
