"""Exports: the same outputs on every path, the fixed signatures, and complete versions on disk."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import preloaded
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2
from tiny_market import IMAGE_DIM, TinyMarket

from q2s_tf.config import FORMAT, IMAGES
from q2s_tf.errors import InputError
from q2s_tf.models import Towers, encode
from q2s_tf.serving.export import export
from q2s_tf.serving.lexical_weight import DEFAULT_WEIGHT
from q2s_tf.serving.versions import SERVABLES

DIMENSION = 16
QUERIES = ["red sofa", "ランプ", "", "أزرق دراجة", "👩‍👩‍👧 PHONE", "x\0y"]
COUNTRIES = ["US", "JP", "", "AE", "ZZ", ""]
FILTERS = {"country": ["us", "JP", "", "AE", "nowhere", ""], "language": ["", "ja", "ru", "en", "", "RU "]}


def strings(values: list[str]) -> np.ndarray:
    return np.array([value.encode() for value in values], object)


def files_of(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of what is in it, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def saved_model(folder: Path) -> saved_model_pb2.SavedModel:
    return saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())


@pytest.fixture(scope="module")
def partitioned_models(
    run: Path, market: TinyMarket, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, dict[str, str]]:
    """A second version with the partitioned index beside a copy of the first; and the first one's files before."""
    folder = tmp_path_factory.mktemp("partitioned") / "models"
    shutil.copytree(models, folder)
    before = files_of(folder)
    return folder, export(run, market.documents, folder, "partitioned", filters=["country", "language"]), before


# --- the same outputs on every path


@pytest.fixture(scope="module")
def requests(market: TinyMarket) -> dict[tuple[str, str], dict[str, Any]]:
    """Inputs by servable and signature."""
    rows = market.document_rows[:9]
    texts = {
        name: strings([row[name] or "" for row in rows]) for name in ("title", "description", "language", "country")
    }
    images = np.zeros((9, 3, IMAGE_DIM), np.float32)
    for row, vectors in zip(images, (row[IMAGES] or [] for row in rows), strict=True):
        row[: len(vectors)] = np.reshape(vectors, (-1, IMAGE_DIM))
    query = {"query": strings(QUERIES), "country": strings(COUNTRIES)}
    parameters = {"k": np.int32(7), "effort": np.int32(0), "min_score": np.float32(-1)}
    embeddings_alone = {**parameters, "lexical_weight": np.float32(0)}
    turned = np.random.default_rng(1).normal(size=(4, DIMENSION)).astype(np.float32)
    return {
        ("query_tower", "serving_default"): query,
        ("document_tower", "serving_default"): {**texts, IMAGES: images},
        ("retriever", "serving_default"): query,
        ("retriever", "retrieve"): {**query, **embeddings_alone},
        ("retriever", "hybrid"): {**query, **parameters, "lexical_weight": np.float32(-1), "k": np.int32(10)},
        ("retriever", "by_embedding"): {"embedding": turned, **parameters},
    }


@pytest.fixture(scope="module")
def fresh_answers(
    models: Path,
    partitioned_models: tuple[Path, int, dict[str, str]],
    requests: dict[tuple[str, str], dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[Any, dict[str, np.ndarray]]:
    """All outputs of a fresh process; one process, because the import of TensorFlow takes most of the time."""
    jobs: dict[Any, fresh_process.Job] = {"ops": ("ops", partitioned_models[0], "", {})}
    for (servable, signature), inputs in requests.items():
        for loader in ("tf2", "session"):
            called = signature.replace("hybrid", "retrieve")
            jobs[loader, servable, signature] = (loader, models / servable / "1", called, inputs)
    no_images = {**requests["document_tower", "serving_default"], IMAGES: np.zeros((9, 0, IMAGE_DIM), np.float32)}
    jobs["session", "document_tower", "no images"] = (
        "session",
        models / "document_tower/1",
        "serving_default",
        no_images,
    )
    everywhere = {**requests["retriever", "retrieve"], "effort": np.int32(10**6)}
    version_2 = partitioned_models[0] / "retriever/2"
    wanted = {f"filter_{name}": strings(values) for name, values in FILTERS.items()}
    any_value = dict.fromkeys(wanted, strings([""] * len(QUERIES)))
    jobs["session", "retriever", "all partitions"] = ("session", version_2, "retrieve", {**everywhere, **any_value})
    for loader in ("tf2", "session"):
        jobs[loader, "retriever", "filtered"] = (loader, version_2, "retrieve", {**everywhere, **wanted})
    answers = fresh_process.answers(list(jobs.values()), tmp_path_factory.mktemp("fresh"))
    return dict(zip(jobs, answers, strict=True))


@pytest.fixture(scope="module")
def vectors(towers: Towers, market: TinyMarket) -> dict[str, np.ndarray]:
    """The embeddings of the queries and the catalogue by the Keras towers."""
    columns = ("title", "description", "language", "country", IMAGES)
    return {
        "query": encode(towers.query, {"query": QUERIES, "country": COUNTRIES})["embedding"],
        "document": encode(towers.document, {name: [row[name] for row in market.document_rows] for name in columns})[
            "embedding"
        ],
    }


def check_retrieved(answer: dict[str, np.ndarray], queries: np.ndarray, documents: np.ndarray, k: int) -> None:
    """Check for the k best cosines and ids that have them; a query without channels gets no result."""
    assert set(answer) >= {"document_id", "score"}
    assert answer["document_id"].shape == answer["score"].shape == (len(queries), k)
    for query, ids, scores in zip(queries, answer["document_id"], answer["score"], strict=True):
        if not query.any():
            assert ids.tolist() == [b""] * k
            assert scores.tolist() == [-1] * k
            continue
        cosines = documents @ query / np.linalg.norm(query)
        np.testing.assert_allclose(scores, np.sort(cosines)[::-1][:k], atol=1e-5)
        np.testing.assert_allclose([cosines[int(name.decode()[1:])] for name in ids], scores, atol=1e-5)
        assert len(set(ids)) == k


@pytest.mark.parametrize("loader", ["tf2", "session"])
def test_towers_answer_as_keras_does(
    loader: str, fresh_answers: dict[Any, Any], towers: Towers, market: TinyMarket
) -> None:
    expected = encode(towers.query, {"query": QUERIES, "country": COUNTRIES})
    answer = fresh_answers[loader, "query_tower", "serving_default"]
    assert set(answer) == {"embedding", "channel_weights"}
    for name, values in answer.items():
        np.testing.assert_allclose(values, expected[name], atol=1e-5)
    columns = {name: [row[name] for row in market.document_rows[:9]] for name in ("title", "description", "language")}
    columns |= {name: [row[name] for row in market.document_rows[:9]] for name in ("country", IMAGES)}
    expected = encode(towers.document, columns)
    for name, values in fresh_answers[loader, "document_tower", "serving_default"].items():
        np.testing.assert_allclose(values, expected[name], atol=1e-5)


def test_a_document_may_have_no_image_vectors(
    fresh_answers: dict[Any, Any], towers: Towers, market: TinyMarket
) -> None:
    names = ("title", "description", "language", "country")
    expected = encode(towers.document, {name: [row[name] for row in market.document_rows[:9]] for name in names})
    for name, values in fresh_answers["session", "document_tower", "no images"].items():
        np.testing.assert_allclose(values, expected[name], atol=1e-5)


@pytest.mark.parametrize("loader", ["tf2", "session"])
def test_the_retriever_answers_as_a_sort_of_keras_cosines(
    loader: str, fresh_answers: dict[Any, Any], requests: dict[Any, Any], vectors: dict[str, np.ndarray]
) -> None:
    check_retrieved(fresh_answers[loader, "retriever", "retrieve"], vectors["query"], vectors["document"], 7)
    turned = requests["retriever", "by_embedding"]["embedding"]
    check_retrieved(fresh_answers[loader, "retriever", "by_embedding"], turned, vectors["document"], 7)


@pytest.mark.parametrize("loader", ["tf2", "session"])
def test_hybrid_scores_add_bm25_to_the_cosines(
    loader: str, fresh_answers: dict[Any, Any], vectors: dict[str, np.ndarray], market: TinyMarket
) -> None:
    answer, default = (fresh_answers[loader, "retriever", name] for name in ("hybrid", "serving_default"))
    assert set(default) == {"document_id", "score"}
    np.testing.assert_array_equal(default["document_id"], answer["document_id"])
    np.testing.assert_allclose(default["score"], answer["score"], atol=1e-6)
    assert (answer["lexical_score"] > 0).any()
    for number, query in enumerate(vectors["query"]):
        found = [int(name.decode()[1:]) for name in answer["document_id"][number] if name]
        embedding, lexical = (answer[f"{part}_score"][number][: len(found)] for part in ("embedding", "lexical"))
        np.testing.assert_allclose(embedding, vectors["document"][found] @ query, atol=1e-5)
        np.testing.assert_allclose(
            answer["score"][number][: len(found)], embedding + DEFAULT_WEIGHT * lexical, atol=1e-5
        )
        for document, score in zip(found, lexical, strict=True):
            row = market.document_rows[document]
            text = f"{row['title'] or ''} {row['description'] or ''}".lower()
            shared = any(word in text for word in QUERIES[number].lower().split())
            assert shared or score == 0 or not text.isascii()


def test_all_partitions_answer_as_the_exact_index(
    fresh_answers: dict[Any, Any], vectors: dict[str, np.ndarray]
) -> None:
    check_retrieved(fresh_answers["session", "retriever", "all partitions"], vectors["query"], vectors["document"], 7)


@pytest.mark.parametrize("loader", ["tf2", "session"])
def test_filters_return_the_best_matching_documents(
    loader: str, fresh_answers: dict[Any, Any], market: TinyMarket, vectors: dict[str, np.ndarray]
) -> None:
    answer = fresh_answers[loader, "retriever", "filtered"]
    for number, (query, ids) in enumerate(zip(vectors["query"], answer["document_id"], strict=True)):
        rules = {name: values[number].strip().lower() for name, values in FILTERS.items() if values[number]}
        allowed = [
            number
            for number, row in enumerate(market.document_rows)
            if all((row[name] or "").lower() == value for name, value in rules.items())
        ]
        best = sorted(allowed, key=lambda number: -float(vectors["document"][number] @ query))[:7]
        expected = [f"d{number:02}" for number in best] if query.any() else []
        assert [name.decode() for name in ids if name] == expected


# --- search parameters of the request


def test_k_is_set_by_the_request(models: Path, vectors: dict[str, np.ndarray]) -> None:
    retrieve = tf.saved_model.load(str(models / "retriever/1")).signatures["retrieve"]

    def retrieve_k(k: int, min_score: float = -1.0) -> dict[str, np.ndarray]:
        parameters = {"k": tf.constant(k), "effort": tf.constant(1), "min_score": tf.constant(min_score)}
        parameters["lexical_weight"] = tf.constant(0.0)
        answer = retrieve(query=tf.constant(QUERIES), country=tf.constant(COUNTRIES), **parameters)
        return {name: tensor.numpy() for name, tensor in answer.items()}

    for k in (1, 3, 60):
        check_retrieved(retrieve_k(k), vectors["query"], vectors["document"], k)
    for nothing in (0, -1):
        with pytest.raises(tf.errors.InvalidArgumentError, match="k must be at least 1"):
            retrieve_k(nothing)
    beyond = retrieve_k(100)
    assert beyond["document_id"].shape == (len(QUERIES), 100), "the shape is what was asked for"
    assert (beyond["document_id"][:, 60:] == b"").all()
    assert (beyond["score"][:, 60:] == -1).all()
    check_retrieved(
        {name: values[:, :60] for name, values in beyond.items()}, vectors["query"], vectors["document"], 60
    )


def test_min_score_removes_lower_scores(models: Path) -> None:
    by_embedding = tf.saved_model.load(str(models / "retriever/1")).signatures["by_embedding"]
    embedding = tf.constant(np.random.default_rng(4).normal(size=(3, DIMENSION)).astype(np.float32))

    def search(min_score: float) -> tuple[np.ndarray, np.ndarray]:
        parameters = {"k": tf.constant(20), "effort": tf.constant(1), "min_score": tf.constant(min_score)}
        answer = by_embedding(embedding=embedding, **parameters)
        return answer["document_id"].numpy(), answer["score"].numpy()

    ids, scores = search(-1.0)
    assert (ids != b"").all()
    radius = float(np.median(scores))
    assert scores.min() < radius < scores.max()
    near_ids, near_scores = search(radius)
    np.testing.assert_array_equal(near_ids, np.where(scores >= radius, ids, b""))
    np.testing.assert_array_equal(near_scores, np.where(scores >= radius, scores, np.float32(-1)))
    none_ids, none_scores = search(2.0)
    assert (none_ids == b"").all()
    assert (none_scores == -1).all()


# --- signatures


def test_signatures_are_those_of_the_design(partitioned_models: tuple[Path, int, dict[str, str]]) -> None:
    texts = {"query": ("DT_STRING", [-1]), "country": ("DT_STRING", [-1])}
    vectors = {"embedding": ("DT_FLOAT", [-1, DIMENSION]), "channel_weights": ("DT_FLOAT", [-1, 3])}
    document = {name: ("DT_STRING", [-1]) for name in ("title", "description", "language", "country")}
    document[IMAGES] = ("DT_FLOAT", [-1, -1, IMAGE_DIM])
    parameters: dict[str, tuple[str, list[int]]] = {
        "k": ("DT_INT32", []),
        "effort": ("DT_INT32", []),
        "min_score": ("DT_FLOAT", []),
    }
    matches = {"document_id": ("DT_STRING", [-1, -1]), "score": ("DT_FLOAT", [-1, -1])}
    matches |= {"embedding_score": ("DT_FLOAT", [-1, -1]), "lexical_score": ("DT_FLOAT", [-1, -1])}
    expected: dict[str, dict[str, Any]] = {
        "query_tower": {"serving_default": (texts, vectors)},
        "document_tower": {"serving_default": (document, {**vectors, "channel_weights": ("DT_FLOAT", [-1, 5])})},
        "retriever": {
            "serving_default": (texts, {"document_id": ("DT_STRING", [-1, 10]), "score": ("DT_FLOAT", [-1, 10])}),
            "retrieve": ({**texts, **parameters, "lexical_weight": ("DT_FLOAT", [])}, matches),
            "by_embedding": ({"embedding": ("DT_FLOAT", [-1, DIMENSION]), **parameters}, matches),
            "index": ({}, {"partitions": ("DT_INT32", []), "default_effort": ("DT_INT32", [])}),
        },
    }
    filters = {f"filter_{name}": ("DT_STRING", [-1]) for name in FILTERS}
    with_filters = {
        name: ({**expected["retriever"][name][0], **filters}, matches) for name in ("retrieve", "by_embedding")
    }
    for servable, plain in expected.items():
        for version in ("1", "2"):
            signatures = plain | (with_filters if (servable, version) == ("retriever", "2") else {})
            (graph,) = saved_model(partitioned_models[0] / servable / version).meta_graphs
            assert set(graph.signature_def) - {"__saved_model_init_op"} == set(signatures)
            for name, (inputs, outputs) in signatures.items():
                signature = graph.signature_def[name]
                assert described(signature.inputs, inputs) == inputs
                assert described(signature.outputs, outputs) == outputs


def described(tensors: Any, like: dict[str, Any]) -> dict[str, Any]:
    """Data type and shape by name; where a width is known to us but not to the graph, -1 may stand for it."""
    described = {}
    for name, tensor in tensors.items():
        shape = [dim.size for dim in tensor.tensor_shape.dim]
        expected = like.get(name, ("", []))[1]
        if len(shape) == len(expected):
            shape = [wanted if size == -1 else size for size, wanted in zip(shape, expected, strict=True)]
        described[name] = (tf.dtypes.DType(tensor.dtype).as_datatype_enum, shape)
    names = {tf.string.as_datatype_enum: "DT_STRING", tf.float32.as_datatype_enum: "DT_FLOAT"}
    names[tf.int32.as_datatype_enum] = "DT_INT32"
    return {name: (names[kind], shape) for name, (kind, shape) in described.items()}


# --- what a stock server needs


def test_default_exports_use_only_ops_of_tensorflow_and_tf_text(fresh_answers: dict[Any, Any]) -> None:
    answer = fresh_answers["ops"]
    libraries = dict(zip(answer["op"].tolist(), answer["library"].tolist(), strict=True))
    assert len(libraries) > 30
    assert {op for op, library in libraries.items() if library == "unknown"} == set()
    assert not [op for op in libraries if "scann" in op.lower()]
    assert "text" in libraries.values(), "normalisation is TF Text's"


def test_no_function_must_be_compiled_by_xla(models: Path) -> None:
    for servable in SERVABLES:
        (graph,) = saved_model(models / servable / "1").meta_graphs
        nodes = list(graph.graph_def.node)
        for function in graph.graph_def.library.function:
            assert not function.attr["_XlaMustCompile"].b
            nodes += function.node_def
        assert not [node.name for node in nodes if node.attr["_XlaMustCompile"].b]


def test_warm_up_requests_cover_every_signature_and_run(models: Path) -> None:
    for servable in SERVABLES:
        folder = models / servable / "1"
        loaded = tf.saved_model.load(str(folder))
        covered = set()
        records = tf.data.TFRecordDataset(str(folder / "assets.extra/tf_serving_warmup_requests"))
        for record in records.as_numpy_iterator():
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            assert request.model_spec.name == servable
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            batched = [values for values in inputs.values() if values.ndim]
            signature = loaded.signatures[request.model_spec.signature_name]
            answer = signature(**{name: tf.constant(values) for name, values in inputs.items()})
            rows = [len(values) for values in batched]
            assert all(len(tensor) == rows[0] for tensor in answer.values() if rows)
            covered |= {(request.model_spec.signature_name, count) for count in rows or [1]}
        assert {name for name, _ in covered} == set(loaded.signatures)
        assert {rows for _, rows in covered} >= {1}
        assert len({rows for _, rows in covered}) > 1, "more than one batch size"


def test_manifests_describe_the_export(
    partitioned_models: tuple[Path, int, dict[str, str]], run: Path, towers: Towers
) -> None:
    tokenizer = hashlib.sha256((run / "tokenizer.model").read_bytes()).hexdigest()
    for version, kind in ((1, "exact"), (2, "partitioned")):
        for servable in SERVABLES:
            path = partitioned_models[0] / servable / str(version) / "assets.extra/manifest.json"
            manifest = json.loads(path.read_text(encoding="utf-8"))
            tower = towers.document if servable == "document_tower" else towers.query
            common = {
                name: manifest[name] for name in ("servable", "version", "format", "run", "channels", "dimension")
            }
            assert common == {
                "servable": servable,
                "version": version,
                "format": FORMAT,
                "run": run.name,
                "channels": tower.channel_names,
                "dimension": DIMENSION,
            }
            assert manifest["tokenizer_sha256"] == tokenizer
            if servable == "retriever":
                assert manifest["documents"] == manifest["indexed"] == 60
                assert manifest["filters"] == ([] if version == 1 else ["country", "language"])
                assert manifest["index"]["kind"] == kind


# --- versions


def test_versions_grow_and_the_old_ones_stay(partitioned_models: tuple[Path, int, dict[str, str]]) -> None:
    folder, version, before = partitioned_models
    assert version == 2
    after = files_of(folder)
    assert {name: after.get(name) for name in before if not name.startswith(".")} == {
        name: content for name, content in before.items() if not name.startswith(".")
    }
    assert sorted(path.name for path in folder.glob("[!.]*")) == sorted(SERVABLES)
    for servable in SERVABLES:
        assert sorted(path.name for path in (folder / servable).iterdir()) == ["1", "2"]


def test_a_save_that_fails_leaves_the_old_version_alone(
    run: Path, market: TinyMarket, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models, tmp_path / "models")
    before = files_of(tmp_path / "models")
    save, calls = tf.saved_model.save, []

    def save_and_fail(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError("no space left on device")

    monkeypatch.setattr(tf.saved_model, "save", save_and_fail)
    with pytest.raises(InputError, match="cannot be written .no space left on device"):
        export(run, market.documents, tmp_path / "models", "exact")
    assert len(calls) == 2
    assert files_of(tmp_path / "models") == before


@pytest.mark.parametrize(
    ("options", "line"),
    [({}, f"lexical weight {DEFAULT_WEIGHT}, the default; judged --queries choose"), ({"lexical_weight": 0.2}, None)],
)
def test_an_export_prints_that_the_lexical_weight_is_the_default(
    run: Path,
    market: TinyMarket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    line: str | None,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no saving in this test")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(InputError, match="no saving"):
        export(run, market.documents, tmp_path / "models", "exact", **options)
    printed = " ".join("".join(capsys.readouterr()).split())
    assert line in printed if line else "lexical weight" not in printed


@pytest.mark.parametrize("limit", [2_000, 200_000])
def test_a_disk_that_is_full_gives_one_line_and_no_version(
    run: Path, market: TinyMarket, tmp_path: Path, limit: int
) -> None:
    """A limit on the size of a file fails the writes at different places as a full disk does."""
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    code += "from q2s_tf.commands import main; main()"
    command = ["-c", code, "export", "--run", run, "--documents", market.documents, "--out", tmp_path / "models"]
    done = preloaded.run(command, timeout=120)
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "cannot be written (" in errors[0]
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [".last_version"]


def test_a_bad_catalogue_publishes_nothing(run: Path, market: TinyMarket, tmp_path: Path) -> None:
    empty = pa.Table.from_pylist(market.document_rows).slice(0, 0)
    twice = pa.Table.from_pylist([*market.document_rows, market.document_rows[0]])
    nameless = pa.Table.from_pylist([{**row, "document_id": None} for row in market.document_rows])
    for table, message in (
        (empty, "catalogue is empty"),
        (twice, "may occur once"),
        (nameless, "needs a document_id|null"),
    ):
        pq.write_table(table.cast(pa.Table.from_pylist(market.document_rows).schema), tmp_path / "documents.parquet")
        with pytest.raises(InputError, match=message):
            export(run, tmp_path / "documents.parquet", tmp_path / "models", "exact")
    with pytest.raises(InputError, match="index scann: needs .*1000 documents; got 60"):
        export(run, market.documents, tmp_path / "models", "scann")
    for filters, message in (
        (["brand"], "has no column brand for --filter"),
        (["country", "country"], "filter country: is named twice"),
        ([IMAGES], f"filter {IMAGES}: must be a text column"),
    ):
        with pytest.raises(InputError, match=message):
            export(run, market.documents, tmp_path / "models", filters=filters)
    for collapse, message in (("seller", "has no column seller for --collapse"), (IMAGES, "must be a text column")):
        with pytest.raises(InputError, match=message):
            export(run, market.documents, tmp_path / "models", collapse=collapse)
    assert not (tmp_path / "models").exists()
