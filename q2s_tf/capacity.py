"""Machines for a catalogue of a given size and a given load, from measured unit costs."""

import math
from dataclasses import dataclass

from rich.table import Table

EMBED_PER_SECOND = 80.0
"""Documents that one core embeds in a second: titles, all-MiniLM-L6-v2."""
QUERY_TOWER_PER_SECOND = 850.0
"""Queries that a server with one client embeds in a second."""
SEARCHES_PER_SECOND = ((100_000, 1_000.0), (1_000_000, 480.0), (10_000_000, 18.0))
"""Documents of one partitioned index, and the queries from text to 100 ids that one core answers in a second."""
MAX_RETRIEVER = 10_000_000
"""Documents of the largest retriever that was measured."""
SEGMENT = 1_000_000
"""Documents of a part of a larger catalogue. A query searches all parts."""
BYTES_BESIDE_VECTOR = 64
"""Memory of a document beside its vector: about 40 bytes for its id, and 8 for each of three filters."""
HEADROOM = 1.5
"""Provided throughput by peak throughput, so that waiting stays out of the p99."""
PROCESS_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Plan:
    """What a catalogue and a load need.

    Attributes:
        documents: N.
        qps: queries per second at the peak.
        engine: `retriever`, if one machine can hold the catalogue, else `milvus`.
        embed_core_hours: time to embed the whole catalogue, hours of one core.
        embed_machines: machines that embed it within the time allowed.
        tower_cores: cores that embed queries; 0 with the retriever, which contains the query tower.
        search_rate: queries that one core answers in a second, each over the whole catalogue.
        search_cores: cores that search.
        copy_bytes: memory of one copy of the catalogue.
        copies: copies of the catalogue.
        search_machines: machines that hold the copies.
    """

    documents: int
    qps: float
    engine: str
    embed_core_hours: float
    embed_machines: int
    tower_cores: float
    search_rate: float
    search_cores: float
    copy_bytes: int
    copies: int
    search_machines: int


def plan_capacity(
    documents: int,
    qps: float,
    dimension: int = 128,
    storage_bytes: int = 4,
    cores: int = 16,
    memory_bytes: int = 64_000_000_000,
    embed_hours: float = 24.0,
    embed_per_second: float = EMBED_PER_SECOND,
    searches_per_second: float | None = None,
) -> Plan:
    """Compute the machines for a catalogue and a load.

        embedding: N / (documents per second of a core · 3600) core hours
        memory of a copy: N · (D · bytes of a number + 64)
        searching: 1.5 · qps / searches per second of a core, over the whole catalogue, cores

    Args:
        documents: N.
        qps: queries per second at the peak.
        dimension: D, numbers of an embedding.
        storage_bytes: bytes of a number in the index: 4 for float32, 2 for bfloat16, 1 for int8.
        cores: cores of a machine.
        memory_bytes: memory of a machine.
        embed_hours: hours in which the whole catalogue must be embedded, for example after a new training.
        embed_per_second: documents that one core embeds in a second.
        searches_per_second: searches of a million documents that one core answers in a second. None: as was measured
            with a partitioned index; Milvus was not measured.
    """
    copy_bytes = documents * (dimension * storage_bytes + BYTES_BESIDE_VECTOR)
    usable = memory_bytes - PROCESS_BYTES
    # TensorFlow Serving loads the next version beside the current one.
    engine = "retriever" if documents <= MAX_RETRIEVER and 2 * copy_bytes <= usable else "milvus"
    if searches_per_second:
        search_rate = searches_per_second * SEGMENT / max(SEGMENT, documents)
    elif engine == "retriever":
        search_rate = measured_rate(documents)
    else:
        search_rate = measured_rate(SEGMENT) * SEGMENT / max(SEGMENT, documents)
    search_cores = HEADROOM * qps / search_rate
    machines_of_copy = 1 if engine == "retriever" else math.ceil(copy_bytes / max(1, usable))
    copies = max(2, math.ceil(search_cores / cores / machines_of_copy))
    embed_core_hours = documents / embed_per_second / 3600
    return Plan(
        documents=documents,
        qps=qps,
        engine=engine,
        embed_core_hours=embed_core_hours,
        embed_machines=math.ceil(embed_core_hours / embed_hours / cores),
        tower_cores=0.0 if engine == "retriever" else HEADROOM * qps / QUERY_TOWER_PER_SECOND,
        search_rate=search_rate,
        search_cores=search_cores,
        copy_bytes=copy_bytes,
        copies=copies,
        search_machines=copies * machines_of_copy,
    )


def measured_rate(documents: int) -> float:
    """Searches per second of one core over one index, interpolated between `SEARCHES_PER_SECOND` on a log scale."""
    sizes, rates = zip(*SEARCHES_PER_SECOND, strict=True)
    position = min(max(documents, sizes[0]), sizes[-1])
    upper = max(1, next(number for number, size in enumerate(sizes) if position <= size))
    share = math.log(position / sizes[upper - 1]) / math.log(sizes[upper] / sizes[upper - 1])
    return rates[upper - 1] * (rates[upper] / rates[upper - 1]) ** share


def capacity_table(plan: Plan, cores: int, memory_bytes: int, embed_hours: float) -> Table:
    """A table of the machines of a plan and what each figure comes from."""
    table = Table("part", "needs", "machines", "from", title=f"{plan.documents:,} documents, {plan.qps:,g} queries/s")
    table.add_row(
        f"embed all documents within {embed_hours:g} h",
        f"{plan.embed_core_hours:,.1f} core hours",
        f"{plan.embed_machines:,}",
        f"{plan.documents / plan.embed_core_hours / 3600:,.0f} documents/s of a core",
    )
    if plan.engine == "milvus":
        table.add_row(
            "embed queries, TensorFlow Serving",
            f"{plan.tower_cores:,.1f} cores",
            f"{max(2, math.ceil(plan.tower_cores / cores)):,}",
            f"{QUERY_TOWER_PER_SECOND:,.0f} queries/s of a core",
        )
    table.add_row(
        "search, " + ("retriever" if plan.engine == "retriever" else "Milvus (not measured)"),
        f"{plan.search_cores:,.1f} cores, {plan.copies:,} copies of {plan.copy_bytes / 1e9:,.1f} GB",
        f"{plan.search_machines:,}",
        f"{plan.search_rate:,.3g} searches/s of a core over all documents",
    )
    table.caption = (
        f"Machines of {cores} cores and {memory_bytes / 1e9:g} GB. {HEADROOM} times the peak load is provided, and at "
        "least two copies of everything. docs/scaling.md has the measurements."
    )
    return table
