"""Commands that train a run, measure it and explain it; and the demo, which runs all steps."""

import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

import q2s_tf
from q2s_tf import cli, extras
from q2s_tf.commands.engine_options import Collection, Engine, EngineOptions, Token, Uri

Run = Annotated[Path, Option(help="A run directory, the --out of `q2s train`.")]
Documents = Annotated[Path, Option(help="The catalogue, Parquet or TSV.")]
Judgements = Annotated[Path, Option(help="Rated pairs, or later positives.")]
Later = Annotated[Path | None, Option(help="Positives of later days, for recall of what users chose then.")]
RelevantAt = Annotated[
    float | None,
    Option(min=-1000, max=1000, help="Lowest grade of a relevant pair. [default: that of the run's config]"),
]
RecallRelevantAt = Annotated[
    float | None, Option(min=-1000, max=1000, help="The same for recall and MRR over the catalogue.")
]
Overrides = Annotated[
    list[str] | None, Option("--set", help="Overrides a key of the config: stage1.batch_size=512. May be repeated.")
]
Stage = Annotated[int | None, Option(min=1, max=2, help="Weights of this stage. [default: the last one]")]


def demo(
    out: Annotated[Path, Option(help="Folder for all that the demo writes.")] = Path("demo"),
    config: Annotated[str, Option(help="Training config: a TOML file, or the name of a shipped one.")] = "marketplace",
    listings: Annotated[int, Option(min=1, max=10_000_000, help="Size of the generated catalogue.")] = 8_000,
    seed: Annotated[int, Option(min=0, max=2**32 - 1, help="Seed of the generated marketplace.")] = 1,
) -> None:
    """Run all steps on a generated marketplace, about 8 minutes.

    Log, positives, training, export, evaluation, server, queries. Without the extra `report` there is no HTML report,
    without the extra `server` no server and no queries.

    Example: q2s demo --out demo
    """
    from q2s_tf.demo import demo

    demo(out, config, listings, seed)


def train(
    config: Annotated[str, Option(help="A TOML file, or the name of a shipped config: marketplace.")],
    documents: Documents,
    out: Annotated[Path, Option(help="The run directory to create.")],
    positives: Annotated[
        Path | None,
        Option(help="Pairs of a query and its document, from `q2s build-positives`. [default: nothing is trained]"),
    ] = None,
    validation: Annotated[
        Path | None, Option(help="Judgements, or later positives; they choose the best epoch. Goes with --positives.")
    ] = None,
    set_: Overrides = None,
    tokenizer: Annotated[
        Path | None, Option(help="The tokenizer.model of another run. [default: trained on the data]")
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Continue a run that was interrupted.")] = False,
) -> None:
    """Train both towers and write a run directory.

    Two stages: in-batch softmax, then hard negatives. Without positives, the run has the pretrained encoders of the
    config as they are.

    Example: q2s train --config marketplace --documents data/documents.parquet
    --positives data/positives.parquet --validation data/judgements_validation.parquet --out runs/first
    """
    try:
        q2s_tf.train(
            config, documents=documents, positives=positives, validation=validation, out=out,
            overrides=set_ or [], tokenizer=tokenizer, resume=resume,
        )  # fmt: skip
    except KeyboardInterrupt:
        if (out / "config.toml").is_file():
            command = shlex.join([*sys.argv, *([] if resume else ["--resume"])])
            cli.console.print(f"interrupted; this continues after the last complete epoch: {command}", markup=False)
        raise


def distil(
    run: Run,
    documents: Documents,
    validation: Annotated[
        Path, Option(help="Judgements, or later positives; they choose the best epoch and are measured at the end.")
    ],
    out: Annotated[Path, Option(help="The run directory to create.")],
    positives: Annotated[
        Path | None, Option(help="Pairs whose queries are learned. [default: only queries made from titles]")
    ] = None,
    set_: Overrides = None,
) -> None:
    """Distil the query tower of a run into a small, fast one.

    The new run has the document tower of the run, unchanged, and a query tower of 3-grams and two layers, which learns
    the query embeddings of the run. The config `distil` describes it. Prints quality, size and time of both.

    Example: q2s distil --run runs/own --documents data/documents.parquet
    --positives data/positives.parquet --validation data/judgements_validation.parquet --out runs/fast
    """
    from q2s_tf.evaluation.query_towers import compare_query_towers, query_towers_table
    from q2s_tf.training.distil_run import distil_run

    distil_run(run, documents, positives, validation, out, set_ or [])
    Console().print(query_towers_table(compare_query_towers(run, out, documents, validation)))


def evaluate(
    run: Run,
    documents: Documents,
    judgements: Judgements,
    out: Annotated[Path, Option(help="Folder for metrics.json, report.html and report.md.")],
    later: Later = None,
    positives: Annotated[Path | None, Option(help="The training positives, for slices by query frequency.")] = None,
    models: Annotated[Path | None, Option(help="Exported servables: measures search through the index.")] = None,
    relevant_at: RelevantAt = None,
    recall_relevant_at: RecallRelevantAt = None,
    stage: Stage = None,
    encoder: Annotated[
        str | None,
        Option(
            help="Preset of the unmodified encoder to compare with, or none. [default: the preset of the run's config, "
            "or all-minilm-l6-v2]"
        ),
    ] = None,
    engine: Engine = "retriever",
    uri: Uri = None,
    token: Token = "",
    collection: Collection = "products",
) -> None:
    """Evaluate a run and say whether to deploy it.

    ROC AUC, nDCG, MRR and recall with intervals and slices: of BM25, of an unmodified encoder, of the run, and of both
    with BM25 added. Also writes a report, in HTML with the extra `report`.

    Example: q2s evaluate --run runs/first --documents data/documents.parquet
    --judgements data/judgements_test.parquet --out runs/first/evaluation
    """
    from q2s_tf.evaluation.evaluate import evaluate
    from q2s_tf.evaluation.exported_index import MilvusAddress
    from q2s_tf.evaluation.results import check_out, metrics_table, replace_files, write_evaluation

    check_out(out)
    address = EngineOptions(engine, uri).milvus_uri
    milvus = None if address is None else MilvusAddress(address, token, collection)
    evaluation = evaluate(
        run, documents, judgements, None, relevant_at, recall_relevant_at, stage, later, positives, models, encoder,
        milvus,
    )  # fmt: skip
    reason = extras.missing("report")
    with replace_files(out) as folder:
        write_evaluation(evaluation, folder)
        if not reason:
            from q2s_tf.report.report import write_report

            write_report(evaluation, folder)
    Console().print(metrics_table(evaluation.results))
    print("{text} {action}".format(**evaluation.results["advice"]))
    print(f"written to {out / ('metrics.json' if reason else 'report.html')}")
    if reason:
        cli.console.print(f"no HTML report: {reason}", markup=False)


def compare(
    run_a: Annotated[Path, Argument(help="The run directory to compare with.")],
    run_b: Annotated[Path, Argument(help="The run directory that may be better.")],
    documents: Documents,
    judgements: Judgements,
    out: Annotated[Path | None, Option(help="Folder for comparison.json and per_query.parquet.")] = None,
    later: Later = None,
    relevant_at: RelevantAt = None,
    recall_relevant_at: RecallRelevantAt = None,
    stage_a: Annotated[int | None, Option(min=1, max=2, help="Weights of RUN_A. [default: the last stage]")] = None,
    stage_b: Annotated[int | None, Option(min=1, max=2, help="Weights of RUN_B. [default: the last stage]")] = None,
) -> None:
    """Compare two runs on the same judgements.

    Prints the differences with intervals and p-values, and the queries that changed most. Both runs are evaluated
    again, so that the figures are of the same data.

    Example: q2s compare runs/first runs/second --documents data/documents.parquet
    --judgements data/judgements_test.parquet
    """
    from q2s_tf.evaluation.compare import compare, comparison_tables

    results = compare(
        run_a, run_b, documents, judgements, out, later, relevant_at, recall_relevant_at, stage_a, stage_b
    )
    console = Console()
    for table in comparison_tables(results):
        console.print(table)
    if out:
        print(f"written to {out / 'comparison.json'}")


def explain(
    query: Annotated[str, Argument(help="The query, in any language.")],
    document: Annotated[str, Option(help="Id of the document to explain.")],
    run: Run,
    documents: Documents,
    country: Annotated[str, Option(help="The searcher's country; empty if unknown.")] = "",
    k: Annotated[int, Option(min=0, max=1000, help="How many of the first documents to show as well.")] = 5,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Explain the score of a document for a query.

    By channel, by 3-gram and by fusion weight, with the document's rank and the one above it.

    Example: q2s explain "red sofa" --country US --document d0000042 --run demo/run
    --documents demo/data/documents.parquet
    """
    from q2s_tf.report.explain import explain, print_explanation

    explanation = explain(run, documents, query, country or None, document, k)
    if as_json:
        text = json.dumps(asdict(explanation), ensure_ascii=False, indent=2)
        print("".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text))
    else:
        print_explanation(explanation, Console(width=None if sys.stdout.isatty() else 140))
