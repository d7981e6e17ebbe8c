"""The figures of a ladder, summed up over seeds, as a table for the console, as Markdown and as an SVG chart."""

import statistics
from collections.abc import Callable, Sequence
from html import escape
from math import ceil, floor
from typing import Any

from ladder_rows import Row
from rich.table import Table

METRICS = ("roc_auc", "ndcg@10", "recall@10", "recall@100")
MAIN = METRICS[0]
NAMES = {"roc_auc": "ROC AUC"}

INK, GRID, MEAN, SEED = "#1b1f24", "#d8dee4", "#0072b2", "#d55e00"
LABELS, PLOT, FIGURES, ROW, TOP, BOTTOM = 270, 400, 110, 30, 62, 58
"""Pixels: width of the names, of the plot and of the figures beside it; height of a row and of what is around them."""
TICKS = (0.005, 0.01, 0.02, 0.05, 0.1)
MOST_TICKS = 9


Figures = dict[tuple[str, int], dict[str, Any]]
"""What `ladder.train_row` returns, by training and seed."""


def summarise(rows: Sequence[Row], figures: Figures) -> list[dict[str, Any]]:
    """What each row has reached, over its seeds.

    Args:
        rows: of the ladder; those without any figure are left out.
        figures: of the trainings that are there.

    Returns:
        By row `name`, `training`, `stage`, `epochs` by seed, every metric as `values` by seed, `mean` and `sd` (of the
        sample, 0 for one seed), and `gain`, the same of the paired difference of ROC AUC to the row `gain_over`: the
        one it is compared with, or the next one before that of which there are figures of its seeds.
    """
    told = []
    for row in rows:
        seeds = sorted(seed for training, seed in figures if training == row.training)
        if not seeds:
            continue
        stage = str(row.stage)
        metrics = {seed: figures[row.training, seed]["metrics"][stage] for seed in seeds}
        entry: dict[str, Any] = {"name": row.name, "training": row.training, "stage": row.stage}
        entry["epochs"] = {str(seed): len(figures[row.training, seed]["validation"][stage]) for seed in seeds}
        for metric in METRICS:
            entry[metric] = _spread({seed: metrics[seed][metric] for seed in seeds})
        if compared := _ancestor(row, rows, figures):
            pairs = {seed: figures[compared.training, seed] for seed in seeds if (compared.training, seed) in figures}
            base = {seed: each["metrics"][str(compared.stage)][MAIN] for seed, each in pairs.items()}
            entry["gain"] = _spread({seed: metrics[seed][MAIN] - value for seed, value in base.items()})
            entry["gain_over"] = compared.name
        told.append(entry)
    return told


def _ancestor(row: Row, rows: Sequence[Row], figures: Figures) -> Row | None:
    """The row to compare with: the first one back that shares a seed."""
    seeds = {seed for training, seed in figures if training == row.training}
    found = next((other for other in rows if (other.training, other.stage) == row.against), None)
    if found is None or any((found.training, seed) in figures for seed in seeds):
        return found
    return _ancestor(found._replace(training=row.training), rows, figures)


def _spread(values: dict[int, float]) -> dict[str, Any]:
    numbers = list(values.values())
    return {
        "mean": statistics.mean(numbers),
        "sd": statistics.stdev(numbers) if len(numbers) > 1 else 0.0,
        "values": {str(seed): value for seed, value in values.items()},
    }


def table(found: dict[str, Any]) -> Table:
    """A ladder for the console: mean ± standard deviation over the seeds."""
    made = Table(
        title=found["title"],
        caption="mean ± standard deviation over seeds; gain: of ROC AUC, seed by seed, over the row named",
    )
    made.add_column("row", no_wrap=True)
    for heading in _headings():
        made.add_column(heading, justify="right")
    for row in found["rows"]:
        made.add_row(row["name"], *_cells(row))
    return made


def markdown(found: dict[str, Any]) -> str:
    """A ladder as a Markdown table, with the ROC AUC of each seed."""
    lines = [["", *_headings(), "each seed"]]
    for row in found["rows"]:
        lines.append([row["name"], *_cells(row), ", ".join(_short(value) for value in row[MAIN]["values"].values())])
    rule = "|".join(["", "---", *["---:"] * (len(lines[0]) - 1), ""])
    head, *body = ("| " + " | ".join(line) + " |" for line in lines)
    return "\n".join([head, rule, *body]) + "\n"


def _headings() -> list[str]:
    return [NAMES.get(MAIN, MAIN), "gain", "over", *METRICS[1:]]


def _cells(row: dict[str, Any]) -> list[str]:
    gain = row.get("gain")
    told = "" if gain is None else f"{gain['mean']:+.4f}".replace("0.", ".", 1) + _deviation(gain, 4)
    over = row.get("gain_over", "").removeprefix("+ ")
    return [_mean(row[MAIN], 4), told, over, *(_mean(row[metric], 3) for metric in METRICS[1:])]


def _mean(spread: dict[str, Any], digits: int) -> str:
    return _short(spread["mean"], digits) + _deviation(spread, digits)


def _deviation(spread: dict[str, Any], digits: int) -> str:
    """± the standard deviation; nothing for a single seed."""
    return f" ±{_short(spread['sd'], digits)}" if len(spread["values"]) > 1 else ""


def _short(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}".removeprefix("0")


def draw(found: dict[str, Any]) -> str:
    """The ROC AUC of every row as an SVG: a dot a seed, a line at their mean."""
    rows = found["rows"]
    values = [value for row in rows for value in row[MAIN]["values"].values()]
    ticks = _ticks(min(values), max(values))
    width, height = LABELS + PLOT + FIGURES, TOP + ROW * len(rows) + BOTTOM
    bottom = height - BOTTOM

    def x(value: float) -> float:
        return LABELS + PLOT * (value - ticks[0]) / (ticks[-1] - ticks[0])

    title = f"{found['title']}: test ROC AUC by row of the ladder"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="{INK}" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="12" y="24" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    parts.append(f'<text x="{LABELS + PLOT + 12}" y="{TOP - 12}">mean ± sd</text>')
    for tick in ticks:
        parts.append(f'<path d="M{x(tick):.1f} {TOP - 8}V{bottom}" stroke="{GRID}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{_label(tick)}</text>')
    for place, row in enumerate(rows):
        parts += _draw_row(row, TOP + ROW * (place + 0.5), x)
    key = height - 10
    parts.append(f'<circle cx="{LABELS + 5}" cy="{key - 4}" r="4" fill="{SEED}" fill-opacity=".75"/>')
    parts.append(f'<text x="{LABELS + 15}" y="{key}">a seed</text>')
    parts.append(f'<path d="M{LABELS + 80} {key - 12}v16" stroke="{MEAN}" stroke-width="3"/>')
    parts.append(f'<text x="{LABELS + 89}" y="{key}">their mean</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _draw_row(row: dict[str, Any], y: float, x: Callable[[float], float]) -> list[str]:
    spread = row[MAIN]
    mean = x(spread["mean"])
    dots = [
        f'<circle cx="{x(value):.1f}" cy="{y}" r="4" fill="{SEED}" fill-opacity=".75"/>'
        for value in spread["values"].values()
    ]
    return [
        f'<text x="{LABELS - 12}" y="{y + 4}" text-anchor="end">{escape(row["name"])}</text>',
        f'<path d="M{LABELS} {y}H{LABELS + PLOT}" stroke="{GRID}" stroke-dasharray="2 4"/>',
        f'<path d="M{mean:.1f} {y - 9}v18" stroke="{MEAN}" stroke-width="3"/>',
        *dots,
        f'<text x="{LABELS + PLOT + 12}" y="{y + 4}">{_mean(spread, 4)}</text>',
    ]


def _ticks(low: float, high: float) -> Sequence[float]:
    """Round numbers around two values, at least two of them."""
    step = next((step for step in TICKS if (high - low) / step < MOST_TICKS - 2), TICKS[-1])
    first, last = floor(low / step), ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def _label(tick: float) -> str:
    return f"{tick:.3f}".removeprefix("0").rstrip("0")
