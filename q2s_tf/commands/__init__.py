"""The command line `q2s`: one subcommand for each step from a search log to answers.

The functions import what they need when they run, so that `q2s --help` does not wait for TensorFlow.
"""

from typing import Annotated

import typer

import q2s_tf
from q2s_tf import cli
from q2s_tf.commands.data import build_positives, import_dataset, make_marketplace, split_judgements
from q2s_tf.commands.deployment import demo_app, export, query, serve, update_index
from q2s_tf.commands.modelling import compare, demo, distil, evaluate, explain, train
from q2s_tf.commands.scaling import capacity, embed, publish

COMMANDS = (
    demo, make_marketplace, build_positives, split_judgements, import_dataset, train, distil, evaluate, compare,
    explain, embed, export, update_index, publish, serve, query, demo_app, capacity,
)  # fmt: skip
"""In the order of the help."""

app = typer.Typer(**cli.STYLE)
for command in COMMANDS:
    app.command(short_help=(command.__doc__ or "").partition("\n")[0])(command)


@app.callback(invoke_without_command=True)
def describe(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Que2Search for TensorFlow: from a search log to semantic retrieval.

    `q2s COMMAND --help` lists the options of a command, with an example.

    Example: q2s demo --out demo
    """
    if version:
        print(f"q2s_tf {q2s_tf.__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """The console script `q2s`."""
    cli.run(app)
