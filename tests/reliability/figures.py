"""The figures of the reliability tests, such as kills survived / tried: `pytest` prints them after the tests."""

FIGURES: list[str] = []
"""In the order of the tests that told them."""

_counts: dict[str, tuple[int, int]] = {}


def tell_figure(text: str) -> None:
    """Have `text` printed when the tests are done."""
    FIGURES.append(text)


def count(name: str, *outcomes: bool) -> None:
    """Add to one figure that several tests share: how many of all outcomes under this name were good."""
    good, tried = _counts.get(name, (0, 0))
    _counts[name] = good + sum(outcomes), tried + len(outcomes)


def counted() -> list[str]:
    """The shared figures, in the order of the tests that began them."""
    return [f"{name}: {good} / {tried}" for name, (good, tried) in _counts.items()]
