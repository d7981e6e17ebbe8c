#!/usr/bin/env python
"""Measures the speed of the funnel by the size of the log, and of the same job in pandas.

The log is generated: searches with a Zipf distribution of queries, clicks with and without search_id, few messages,
fewer replies, some replays. The numbers of users and listings grow with the log, so that a user has
as many events at any size. Each run is a separate process, so that its peak memory is measured alone.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from typer import Option

from q2s_tf import cli
from q2s_tf.files import atomic_write

DAYS = 10
DAY = 86_400_000_000
JOBS = ("funnel", "pandas, merges", "pandas, as-of")
START = 1_767_225_600_000_000  # 2026-01-01, in microseconds


def write_log(folder: Path, num_events: int, seed: int = 0) -> None:
    """Write `num_events` events of ten days, one Parquet file per day, each in the order of time."""
    folder.mkdir(parents=True)
    users, documents = max(1, num_events // 40), max(1, num_events // 100)
    for day in range(DAYS):
        rng = np.random.default_rng((seed, day))
        pq.write_table(one_day(rng, day, num_events // DAYS, users, documents), folder / f"day-{day}.parquet")


def one_day(rng: np.random.Generator, day: int, num_events: int, users: int, documents: int) -> pa.Table:
    """The events of one day: 35 % searches, 50 % clicks, 10 % messages, 5 % replies; 1 in 200 is written twice."""
    sizes = [int(num_events * share) for share in (0.35, 0.5, 0.1, 0.05)]
    searches, clicks, messages, replies = sizes
    user = rng.integers(0, users, searches)
    when = START + day * DAY + rng.integers(0, DAY, searches)
    query = np.minimum(rng.zipf(1.3, searches), 100_000)
    search = np.arange(searches)
    of_click = rng.integers(0, searches, clicks)
    document = (documents * rng.random(clicks) ** 2).astype(np.int64)
    clicked = when[of_click] + rng.exponential(60e6, clicks).astype(np.int64)
    of_message = rng.integers(0, clicks, messages)
    messaged = clicked[of_message] + rng.exponential(300e6, messages).astype(np.int64)
    of_reply = rng.integers(0, messages, replies)
    replied = messaged[of_reply] + rng.exponential(6 * 3600e6, replies).astype(np.int64)
    of_reply = of_message[of_reply]
    nothing = [np.full(size, -1) for size in sizes]
    columns = {
        "user_id": np.concatenate([user, user[of_click], user[of_click[of_message]], user[of_click[of_reply]]]),
        "timestamp": np.concatenate([when, clicked, messaged, replied]),
        "query": np.concatenate([query, *nothing[1:]]),
        "document_id": np.concatenate([nothing[0], document, document[of_message], document[of_reply]]),
        "search_id": np.concatenate([search, np.where(rng.random(clicks) < 0.5, of_click, -1), *nothing[2:]]),
    }
    event = np.repeat(np.arange(4), sizes)
    order = np.argsort(np.concatenate([columns["timestamp"], columns["timestamp"][: num_events // 200]]), kind="stable")
    order = order % len(event)
    names = pa.array(["search", "click", "message", "reply"])
    text = {name: _text(name[0] + f"{day}-" * (name == "search_id"), columns[name][order]) for name in columns}
    return pa.table({
        **text,
        "event": names.take(pa.array(event[order])),
        "timestamp": pa.array(columns["timestamp"][order], pa.timestamp("us", "UTC")),
        "country": pc.if_else(pa.array(event[order] == 0), pa.scalar("US"), pa.scalar(None, pa.string())),
    })  # fmt: skip


def _text(prefix: str, numbers: np.ndarray) -> pa.Array:
    digits = pc.cast(pa.array(numbers, mask=numbers < 0), pa.string())
    return pc.binary_join_element_wise(prefix, digits, "")


def measure(job: str, folder: Path, out: Path, memory: str, limit_gib: float) -> dict[str, Any]:
    """Run `job`, one of `JOBS`, in a process limited to `limit_gib` of data.

    Returns `seconds` (without imports), `cpu_seconds` (with imports), `peak_mib` and `positives`.
    """
    arguments = [sys.executable, __file__, "--job", job, "--log", folder, "--out", out, "--memory", memory]
    limit = int(limit_gib * 2**30)
    process = subprocess.Popen(
        [str(part) for part in arguments], stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )  # fmt: skip
    assert process.stdout is not None
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{job} on {folder.name} ended with status {os.waitstatus_to_exitcode(status)}")
    seconds_of_cpu = usage.ru_utime + usage.ru_stime
    return {"job": job, **json.loads(answer), "cpu_seconds": seconds_of_cpu, "peak_mib": usage.ru_maxrss / 1024}


def one_job(job: str, log: Path, out: Path, memory: str) -> None:
    """Run one job in this process and print its duration, without imports, as JSON."""
    import funnel_pandas

    from q2s_tf.search_log import build_positives

    begin = time.perf_counter()
    if job == "funnel":
        positives = build_positives(log, out, memory=memory).positives
    else:
        positives = funnel_pandas.run(log, out, as_of=job == "pandas, as-of")
    print(json.dumps({"seconds": time.perf_counter() - begin, "positives": positives}))


def compare(sizes: list[int], pandas_size: int, repeats: int, memory: str, limit_gib: float) -> dict[str, Any]:
    """Run all sizes and jobs in turns: returns `runs`, and ratios of their medians."""
    turns = [("funnel", size) for size in dict.fromkeys([*sizes, pandas_size])]
    turns += [("pandas, merges", pandas_size), ("pandas, as-of", pandas_size)]
    runs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _, size in cli.track([turn for turn in turns if turn[0] == "funnel"], "writing logs"):
            write_log(folder / str(size), size)
        for job, size in cli.track(turns * repeats, "running in turns"):
            run = measure(job, folder / str(size), folder / f"{job}.parquet", memory, limit_gib)
            runs.append({"events": size, **run, "events_per_second": size / run["seconds"]})
    if len({run["positives"] for run in runs if run["events"] == pandas_size}) != 1:
        raise RuntimeError(f"pandas and the funnel found different positives in {pandas_size} events")
    middle = {
        turn: float(np.median([run["seconds"] for run in runs if (run["job"], run["events"]) == turn]))
        for turn in turns
    }
    small, large = min(sizes), max(sizes)
    return {
        "runs": runs,
        "cost_per_event_ratio": (middle["funnel", large] / large) / (middle["funnel", small] / small),
        "times_faster_than_pandas": {job: middle[job, pandas_size] / middle["funnel", pandas_size] for job in JOBS[1:]},
        "cores": os.cpu_count(), "memory": memory, "limit_gib": limit_gib,
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    """Print the runs and the two ratios."""
    view = Table(title=f"Search log to positives, {result['cores']} cores, {result['limit_gib']:g} GiB at most")
    for name in ("job", "events", "seconds", "CPU seconds", "events/s", "peak MiB", "positives"):
        view.add_column(name, justify="left" if name == "job" else "right")
    for run in result["runs"]:
        view.add_row(
            run["job"], f"{run['events']:,}", f"{run['seconds']:.2f}", f"{run['cpu_seconds']:.1f}",
            f"{run['events_per_second']:,.0f}", f"{run['peak_mib']:,.0f}", f"{run['positives']:,}",
        )  # fmt: skip
    console = Console()
    console.print(view)
    console.print(f"cost per event, largest log to smallest: {result['cost_per_event_ratio']:.2f}")
    for job, times in result["times_faster_than_pandas"].items():
        console.print(f"times faster than {job}: {times:.1f}")


def main(
    sizes: Annotated[str, Option(help="Numbers of events of the logs for the funnel.")] = "2000000,20000000",
    pandas_size: Annotated[int, Option(help="Number of events of the log for pandas.")] = 2_000_000,
    repeats: Annotated[int, Option(min=1, help="Number of runs; the medians are compared.")] = 3,
    memory: Annotated[str, Option(help="Memory of the funnel.")] = "2GB",
    limit_gib: Annotated[float, Option(help="Memory limit of a process, in GiB.")] = 4.0,
    out: Annotated[Path | None, Option(help="JSON file for the result.")] = None,
    job: Annotated[str | None, Option(hidden=True)] = None,
    log: Annotated[Path | None, Option(hidden=True)] = None,
) -> None:
    """Compares the speed of the funnel on logs of several sizes, and with pandas.

    Example: benchmarks/funnel.py --sizes 2000000,20000000 --pandas-size 2000000 --out funnel.json
    """
    if job and log and out:
        one_job(job, log, out, memory)
        return
    result = compare([int(size) for size in sizes.split(",")], pandas_size, repeats, memory, limit_gib)
    show(result)
    if out:
        with atomic_write(out) as partial:
            partial.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
