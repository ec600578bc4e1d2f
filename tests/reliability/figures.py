"""The figures of the reliability tests, such as kills survived / tried: `pytest` prints them after the tests."""

FIGURES: list[str] = []
"""In the order of the tests that told them."""


def tell_figure(text: str) -> None:
    """Have `text` printed when the tests are done."""
    FIGURES.append(text)
