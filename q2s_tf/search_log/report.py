"""What was read, what was left out and why, and what came of it: for a person as a table, for a program as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from q2s_tf.search_log.cleaning import KINDS, LOG_RULES, ROW_RULES


@dataclass(frozen=True)
class Report:
    """The counts of one run of the funnel.

    Attributes:
        settings: What the run was asked for, in words.
        rows: Rows read.
        replays: Rows that break no rule by themselves and repeat another one exactly; they count once, as it should
            be, so they are no fault.
        faults: Rule -> rows left out by it (0 included); a rule that was not asked for is absent.
        events: Kind of event -> rows without a fault.
        positives: Distinct (query, country, document) triples found.
        weight: Sum of their weights: how often a search led to a document.
        validation: How many of the positives were kept for validation.
    """

    settings: dict[str, Any]
    rows: int
    replays: int
    faults: dict[str, int]
    events: dict[str, int]
    positives: int = 0
    weight: int = 0
    validation: int = 0

    def as_json(self) -> dict[str, Any]:
        """The report as plain values, ready for ``json.dump``."""
        return asdict(self)

    def broken(self) -> dict[str, int]:
        """The rules that some row broke, with their counts: what ``--strict`` refuses."""
        return {rule: rows for rule, rows in self.faults.items() if rows}


def table(report: Report) -> Table:
    """The report as a table to print: what came in, what was left out, what came out."""
    view = Table(title="Search log to positives", title_justify="left", caption_justify="left", expand=False)
    for name, options in (("", {}), ("rows", {"justify": "right"}), ("share", {"justify": "right"}), ("meaning", {})):
        view.add_column(name, **options)  # type: ignore[arg-type]
    view.add_row("read", f"{report.rows:,}", "", "everything in the log")
    repeats = _share(report.replays, report.rows)
    view.add_row("replays", f"{report.replays:,}", repeats, "exact repeats; each counts once")
    view.add_section()
    for rule, meaning in (ROW_RULES | LOG_RULES).items():
        if rule in report.faults:
            rows = report.faults[rule]
            view.add_row(rule, f"{rows:,}", _share(rows, report.rows), meaning, style="yellow" if rows else "dim")
    view.add_section()
    for kind in KINDS:
        rows = report.events[kind]
        view.add_row(_PLURAL[kind], f"{rows:,}", _share(rows, report.rows), "left to the funnel")
    view.add_section()
    weight = f"query, country, document; {report.weight:,} searches led to them"
    view.add_row("positives", f"{report.positives:,}", "", weight, style="bold")
    if report.validation:
        share = _share(report.validation, report.positives)
        view.add_row("of them validation", f"{report.validation:,}", share, "the last days; share of the positives")
    return view


_PLURAL = {"search": "searches", "click": "clicks", "message": "messages", "reply": "replies"}


def _share(part: int, whole: int) -> str:
    return "" if not part or not whole else "<0.01 %" if part / whole < 0.0001 else f"{100 * part / whole:.2f} %"
