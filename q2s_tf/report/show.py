"""An explanation on the console."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from q2s_tf.report.explain import Explanation, Match, Trigram

TRIGRAMS = 12
"""3-grams a side that are shown; `--json` has all."""


def show(explanation: Explanation, console: Console) -> None:
    """Prints an explanation as tables: the sum of contributions, the weights, the 3-grams, the ranking."""
    own = explanation.match
    console.print(
        Text(f"{explanation.query.inputs['query']}  →  {own.document_id}  {own.title or '(no title)'}", "bold")
    )
    console.print(f"score {explanation.score:.4f}, rank {explanation.rank:,} of {explanation.documents:,} documents\n")
    console.print(_contributions_table(explanation))
    for side, tower, other in ((explanation.query, "query", "document"), (explanation.document, "document", "query")):
        if side.trigrams:
            console.print(_trigrams_table(side.trigrams, tower, other))
    console.print(_ranking_table(explanation))


def _contributions_table(explanation: Explanation) -> Table:
    """A row a query channel, a column a document channel; the sum of all is the score."""
    table = Table(title="What each pair of channels adds to the score", title_justify="left", show_footer=True)
    columns = explanation.document.weights
    table.add_column("query channel (weight)", "all", no_wrap=True)
    total = dict.fromkeys(columns, 0.0)
    for row in explanation.contributions.values():
        for column, value in row.items():
            total[column] += value
    for column, weight in columns.items():
        table.add_column(f"{column}\n({_weight(weight)})", _sum(total[column], weight), justify="right")
    table.add_column("all", f"{explanation.score:+.4f}", justify="right")
    for name, row in explanation.contributions.items():
        weight = explanation.query.weights[name]
        cells = [_sum(value, None if weight is None else columns[column]) for column, value in row.items()]
        table.add_row(f"{name} ({_weight(weight)})", *cells, _sum(sum(row.values()), weight))
    return table


def _trigrams_table(trigrams: list[Trigram], tower: str, other: str) -> Table:
    title = f"3-grams of the {tower} that add most (● the {other} has it too)"
    if len(trigrams) > TRIGRAMS:
        title += f", {TRIGRAMS} of {len(trigrams)}"
    table = Table(title=title, title_justify="left", min_width=len(title) + 2)
    table.add_column("3-gram", no_wrap=True)
    table.add_column("channel")
    table.add_column("times", justify="right")
    table.add_column("adds", justify="right")
    table.add_column("")
    for each in trigrams[:TRIGRAMS]:
        trigram = Text(each.trigram.replace(" ", "␣"))
        table.add_row(trigram, each.channel, str(each.count), f"{each.contribution:+.4f}", "●" if each.shared else "")
    return table


def _ranking_table(explanation: Explanation) -> Table:
    """The first documents, and the one in question with its nearest competitor, each with its document channels."""
    caption = "→ the document in question   ◀ its nearest competitor"
    table = Table(title="The ranking, and what each document channel adds there", title_justify="left", caption=caption)
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("document", min_width=24, max_width=40, overflow="ellipsis", no_wrap=True)
    table.add_column("score", justify="right")
    for name in explanation.match.contributions:
        table.add_column(name.replace("_", "_\n"), justify="right", min_width=6, overflow="fold")
    rival = [explanation.competitor] if explanation.competitor else []
    rows = {each.rank: each for each in [*explanation.best, *rival, explanation.match]}
    for rank in sorted(rows):
        table.add_row(*_cells(rows[rank], explanation), style="bold" if rank == explanation.rank else None)
    return table


def _cells(match: Match, explanation: Explanation) -> list[str | Text]:
    rival = explanation.competitor is not None and match.rank == explanation.competitor.rank
    mark = "→ " if match.rank == explanation.rank else "◀ " if rival else ""
    name = Text.assemble((match.document_id, "dim"), f" {match.title or '(no title)'}")
    parts = [f"{value:+.3f}" if value else "–" for value in match.contributions.values()]
    return [f"{mark}{match.rank:,}", name, f"{match.score:.4f}", *parts]


def _weight(weight: float | None) -> str:
    return "missing" if weight is None else f"{weight:.2f}"


def _sum(value: float, weight: float | None) -> str:
    return "–" if weight is None else f"{value:+.4f}"
