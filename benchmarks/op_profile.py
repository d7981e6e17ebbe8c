#!/usr/bin/env python
"""Where the time of one request goes: microseconds by group of ops of a served signature.

A version runs through the session loader on one thread, as in TensorFlow Serving. Each op belongs to the group of the
layer or of the part of the search that its name contains. A request that records the times of its ops takes longer than
one that does not; the two kinds of requests take turns.
"""

import os
import re
import statistics
import time
from collections import defaultdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from query_tower import open_signature, read_queries
from rich.console import Console
from rich.table import Table

from q2s_tf.errors import InputError
from q2s_tf.serving.folders import versions_in

WARM_UP = 20
OUTER_SCOPES = (
    "functional",
    "preprocessor",
    "query_tower",
    "document_tower",
    "StatefulPartitionedCall",
    "PartitionedCall",
)
"""Parts of the name of an op that are around its layer."""


def main(
    model: Path = typer.Option(..., help="Folder of a servable or of a version, such as saved_models/query_tower."),
    queries: Path = typer.Option(..., help="Parquet file with the columns query and country."),
    signature: str = typer.Option("serving_default", help="A signature with the inputs query and country."),
    rounds: int = typer.Option(300, help="Requests."),
    ops: int = typer.Option(0, help="Also print so many single ops, those that take the most time."),
) -> None:
    """Print microseconds by group of ops, one query a request.

    Example: benchmarks/op_profile.py --model saved_models/query_tower --queries data/judgements_test.parquet
    """
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"

    if find_spec("scann"):
        import_module("scann")  # registers its ops, which a retriever may have
    call, types = session_call(newest_version(model), signature)
    asked = read_queries(queries)
    groups: dict[str, list[float]] = defaultdict(lambda: [0.0] * rounds)
    single: dict[str, list[float]] = defaultdict(lambda: [0.0] * rounds)
    counts: dict[str, int] = defaultdict(int)
    plain = []
    for number in range(-WARM_UP, rounds):
        query = asked[number % len(asked)]
        begin = time.perf_counter()
        call(*query, trace=False)
        seconds = time.perf_counter() - begin
        spans = call(*query, trace=True)
        if number < 0:
            continue
        plain.append(seconds * 1e6)
        for name, microseconds in spans:
            group = group_of(name)
            groups[group][number] += microseconds
            single[name][number] += microseconds
            if number == rounds - 1:
                counts[group] += 1
    medians = {group: statistics.median(values) for group, values in groups.items()}
    table = Table("group", "ops", "median µs", "share")
    for group in sorted(medians, key=lambda name: -medians[name]):
        share = medians[group] / sum(medians.values())
        table.add_row(group, str(counts[group]), f"{medians[group]:.1f}", f"{share:.0%}")
    table.add_section()
    table.add_row("all ops, traced", str(sum(counts.values())), f"{sum(medians.values()):.1f}", "")
    table.add_row("a request, not traced", "", f"{statistics.median(plain):.1f}", "")
    console = Console()
    console.print(table)
    if ops:
        table = Table("op", "type", "median µs")
        times = {name: statistics.median(values) for name, values in single.items()}
        for name in sorted(times, key=lambda name: -times[name])[:ops]:
            table.add_row(name, types.get(name, ""), f"{times[name]:.1f}")
        console.print(table)


def newest_version(folder: Path) -> Path:
    """The folder itself if it is a version, else its newest version."""
    if (folder / "saved_model.pb").is_file():
        return folder
    versions = versions_in(folder)
    if not versions:
        raise InputError(f"--model {folder}: holds no saved model and no version of one")
    return versions[max(versions)]


def group_of(op: str) -> str:
    """The layer or the part of the search that an op belongs to, from its name."""
    scopes = (re.sub(r"_\d+$", "", part) for part in op.split("/")[:-1])
    return next((scope for scope in scopes if scope not in OUTER_SCOPES), "other")


def session_call(version: Path, signature: str) -> tuple[Any, dict[str, str]]:
    """A signature as a function of a query and a country, and the types of the ops by name.

    Traced, the function returns the name and the microseconds of each op; otherwise nothing.
    """
    import numpy as np
    from tensorflow.core.protobuf import config_pb2

    session, definition = open_signature(version, signature)
    fetches = [tensor.name for tensor in definition.outputs.values()]
    inputs = [definition.inputs[name].name for name in ("query", "country")]
    plain = session._make_callable_from_options(config_pb2.CallableOptions(feed=inputs, fetch=fetches))
    traced = config_pb2.RunOptions(trace_level=config_pb2.RunOptions.FULL_TRACE, output_partition_graphs=True)
    types: dict[str, str] = {}

    def call(query: str, country: str, trace: bool) -> list[tuple[str, float]]:
        values = [np.array([query.encode()], object), np.array([country.encode()], object)]
        if not trace:
            plain(*values)
            return []
        metadata = config_pb2.RunMetadata()
        session.run(fetches, dict(zip(inputs, values, strict=True)), options=traced, run_metadata=metadata)
        if not types:
            types.update((node.name, node.op) for part in metadata.partition_graphs for node in part.node)
        return [
            (node.node_name, (node.op_end_rel_nanos - node.op_start_rel_nanos) / 1e3)
            for device in metadata.step_stats.dev_stats
            for node in device.node_stats
        ]

    return call, types


if __name__ == "__main__":
    from q2s_tf import cli

    cli.run(main)
