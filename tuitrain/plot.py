"""Metrics of one or several runs in one picture of text, by plotext; knows no screen.

plotext has a single figure for the whole process, so that one plot at a time is drawn, whichever thread asks.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tuitrain.runs.decimation import Envelope, Window
from tuitrain.runs.run import Run
from tuitrain.runs.scale import FARTHEST, Scale, choose_scale
from tuitrain.runs.series import DEFAULT_SMOOTHING, METRIC_LABELS, NOISY_METRICS, Metric, RunSeries, Smoothed
from tuitrain.wording import escape_control

MIN_HEIGHT: Final = 8
NOTHING: Final = "nothing to plot yet"

_COLORS = (6, 3, 2, 5, 1, 4)  # of the terminal's own sixteen
_BAND_COLOR = 8
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_CELLS_PER_X_TICK = 8
_ROWS_PER_Y_TICK = 3
_LOG_COLUMNS = 1 << 13  # columns are equally wide in steps: enough of them for the first ones on a logarithmic axis

_FIGURE_LOCK = threading.Lock()


@dataclass(frozen=True)
class PlotOptions:
    """What is drawn, and how.

    Args:
        metrics: one, or two, of which the second has the axis at the right.
        is_log_y: logarithmic values.
        is_log_x: logarithmic steps.
        smoothing: factor of the exponential moving average of noisy metrics; 0 for none.
        first, last: the steps on show; None as far as there are any.
    """

    metrics: tuple[Metric, ...] = ("loss",)
    is_log_y: bool = False
    is_log_x: bool = False
    smoothing: float = DEFAULT_SMOOTHING
    first: int | None = None
    last: int | None = None


@dataclass(frozen=True)
class _Curve:
    """One metric of one run in one window.

    Args:
        name: of the run, as it is told.
        metric: what was measured.
        envelope: its values.
        last_step: that it has.
    """

    name: str
    metric: Metric
    envelope: Envelope
    last_step: int

    def line(self, options: PlotOptions) -> tuple[list[float], list[float]]:
        """Steps and values to join, of what is smoothed or needs no smoothing; else as the band."""
        if self.metric in NOISY_METRICS and not options.smoothing:
            return self.band(options)
        return self._points(self.envelope.line, options)

    def band(self, options: PlotOptions) -> tuple[list[float], list[float]]:
        """Steps and values to join, up and down through the extremes of the raw values."""
        points = [
            point
            for values in (self.envelope.lows, self.envelope.highs)
            for point in zip(*self._points(values, options), strict=True)
        ]
        points.sort(key=lambda point: point[0])
        return [step for step, _ in points], [value for _, value in points]

    def _points(self, values: Sequence[float], options: PlotOptions) -> tuple[list[float], list[float]]:
        """Steps and those of `values`, one for each column of the envelope, that can be drawn."""
        window = self.envelope.window
        steps, drawable = [], []
        for column, value in enumerate(values):
            step = min(window.end_step(column) - 1, self.last_step)
            if _is_drawable(value, is_log=options.is_log_y) and _is_drawable(step, is_log=options.is_log_x):
                steps.append(float(step))
                drawable.append(value)
        return steps, drawable


def draw_plot(
    series: Mapping[str, RunSeries], options: PlotOptions, *, width: int, height: int, has_color: bool
) -> str:
    """Lines of text that show `options.metrics` of each run.

    Args:
        series: by the name that the legend tells; control characters are escaped.
        width, height: in cells; a legend may leave no less than MIN_HEIGHT for the picture itself.
        has_color: by ANSI sequences; without, curves are told apart by letters.
    """
    curves = _curves(series, options, width)
    if not curves:
        return NOTHING
    legend = _legend(curves, options, width=width, has_color=has_color)
    with _FIGURE_LOCK:
        text = _draw(curves, options, width=width, height=max(height - len(legend), MIN_HEIGHT), has_color=has_color)
    return "\n".join([*legend, *text.rstrip("\n").split("\n")])


def name_runs(runs: Sequence[Run]) -> dict[str, Run]:
    """`runs` by the shortest names that tell them apart: those of their folders, or their whole paths."""
    by_path = {run.path: run for run in runs}
    names = [path.name for path in by_path]
    return {path.name if names.count(path.name) == 1 else str(path): run for path, run in by_path.items()}


def describe_series(run: RunSeries, options: PlotOptions) -> dict[str, Any]:
    """All numbers behind a plot of `run`: the steps, and the values of each metric as measured and smoothed."""
    return {
        "steps": list(run.steps),
        "smoothing": options.smoothing,
        "metrics": {
            metric: {
                "values": list(run.values(metric)),
                "smoothed": list(smoothed_values(run, metric, options.smoothing)),
            }
            for metric in options.metrics
        },
        "checkpoints": run.checkpoints,
        "samples": run.samples,
        "spikes": [step for step, _ in run.spikes],
    }


def _curves(series: Mapping[str, RunSeries], options: PlotOptions, width: int) -> list[_Curve]:
    """Those of which something can be drawn, the first metric's before the second's."""
    begun = {name: run for name, run in series.items() if len(run)}
    if not begun:
        return []
    first = min(run.steps[0] for run in begun.values()) if options.first is None else options.first
    last = max(run.steps[-1] for run in begun.values()) if options.last is None else options.last
    window = Window.whole(first, max(first, last), _LOG_COLUMNS if options.is_log_x else 2 * width)
    curves = []
    for metric in options.metrics:
        for name, run in begun.items():
            envelope = Envelope(window)
            envelope.take(run.steps, run.values(metric), smoothed_values(run, metric, options.smoothing))
            curve = _Curve(name=escape_control(name), metric=metric, envelope=envelope, last_step=run.steps[-1])
            if curve.line(options)[0]:
                curves.append(curve)
    return curves


def smoothed_values(run: RunSeries, metric: Metric, smoothing: float) -> Sequence[float]:
    """The column of `metric`, smoothed by the factor `smoothing` where it is noisy; 0.15 µs a step."""
    if metric not in NOISY_METRICS or not smoothing:
        return run.values(metric)
    smoothed = Smoothed(smoothing)
    smoothed.extend(run.values(metric))
    return smoothed.values


def _is_drawable(value: float, *, is_log: bool) -> bool:
    return abs(value) <= FARTHEST and (value >= 1 / FARTHEST or not is_log)


def _draw(curves: Sequence[_Curve], options: PlotOptions, *, width: int, height: int, has_color: bool) -> str:
    """The picture below the legend.

    Points are placed and labelled by our own scales: plotext takes the limits of a logarithmic axis for exponents.
    """
    import plotext  # 0.2 s

    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(width, height)
    figure.label("step")
    x_scale = _steps_scale(curves, options, width)
    _label(figure.ruler("x", "lower"), x_scale)
    has_band = len(curves) == 1 and bool(options.smoothing) and curves[0].metric in NOISY_METRICS
    y_scales = {}
    for side, metric in zip(("left", "right"), options.metrics, strict=False):
        measured = [curve for curve in curves if curve.metric == metric]
        if scale := _values_scale(measured, options, height, has_band=has_band):
            y_scales[metric] = side, scale
            _label(figure.ruler("y", side), scale)
    for number, curve in enumerate(curves):
        side, scale = y_scales[curve.metric]
        color = _COLORS[number % len(_COLORS)]
        dots = "hd" if has_band else "braille"  # dots of one kind would melt into one another
        symbol = dots if has_color or len(curves) == 1 else _letter(number)
        layers = [(curve.band(options), "braille", _BAND_COLOR)] if has_band else []
        for (steps, values), layer_symbol, layer_color in [*layers, (curve.line(options), symbol, color)]:
            marker = plotext.marker(layer_symbol, pixel=plotext.pixel(layer_color))
            xs, ys = [x_scale.fraction(step) for step in steps], [scale.fraction(value) for value in values]
            figure.draw(figure.signal(xs, ys, marker=marker, yside=side).lines().density("full"))
    text: str = figure.build().string()
    return text if has_color else plotext.uncolorize(text)


def _letter(number: int) -> str:
    return _LETTERS[number % len(_LETTERS)]


def _label(ruler: Any, scale: Scale) -> None:
    ruler.lim(0.0, 1.0)
    ruler.ticks([scale.fraction(tick) for tick in scale.ticks], list(scale.labels))


def _steps_scale(curves: Sequence[_Curve], options: PlotOptions, width: int) -> Scale:
    """From the first step of any curve to the last, with labels at the round numbers in between."""
    steps = [step for curve in curves for step in curve.line(options)[0]]
    first, last = min(steps), max(*steps, min(steps) + 1.0)
    scale = choose_scale(first, last, is_log=options.is_log_x, max_ticks=max(2, width // _CELLS_PER_X_TICK))
    ticks = [tick for tick in scale.ticks if first <= tick <= last and tick == round(tick)]
    return Scale(
        low=first,
        high=last,
        is_log=options.is_log_x,
        ticks=tuple(ticks),
        labels=tuple(str(round(tick)) for tick in ticks),
    )


def _values_scale(curves: Sequence[_Curve], options: PlotOptions, height: int, *, has_band: bool) -> Scale | None:
    """What holds all the curves, but for the farthest raw values; None when there are none."""
    lows, highs = [], []
    for curve in curves:
        _, line = curve.line(options)
        has_raw_values = has_band or (curve.metric in NOISY_METRICS and not options.smoothing)
        raw = curve.envelope.value_range(is_log=options.is_log_y) if has_raw_values else None
        low, high = raw or (min(line), max(line))
        lows.append(low)
        highs.append(high)
    if not lows:
        return None
    max_ticks = max(2, height // _ROWS_PER_Y_TICK)
    return choose_scale(min(lows), max(highs), is_log=options.is_log_y, max_ticks=max_ticks)


def _legend(curves: Sequence[_Curve], options: PlotOptions, *, width: int, has_color: bool) -> list[str]:
    """What is drawn, and which curve is whose."""
    facts = [" and ".join(METRIC_LABELS[metric] for metric in options.metrics)]
    facts += ["log y"] if options.is_log_y else []
    facts += ["log steps"] if options.is_log_x else []
    if options.smoothing and any(curve.metric in NOISY_METRICS for curve in curves):
        facts.append(f"smoothed by {options.smoothing:g}")
    lines = [", ".join(facts)[:width]]
    for number, curve in enumerate(curves):
        sign = "━━" if has_color or len(curves) == 1 else _letter(number) * 2
        words = curve.name
        if len(options.metrics) > 1:
            words += f": {METRIC_LABELS[curve.metric]}, {'left' if curve.metric == options.metrics[0] else 'right'}"
        words = words[: width - 3]
        color = _COLORS[number % len(_COLORS)]
        lines.append(f"\x1b[3{color}m{sign}\x1b[0m {words}" if has_color else f"{sign} {words}")
    return lines
