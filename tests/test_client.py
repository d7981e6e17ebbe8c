"""The client and tools/query.py with a real server in this process, and with scripted servers that fail."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pandas as pd
import preloaded
import pyarrow as pa
import pytest
import serving_models
import tensorflow as tf
from rich.console import Console
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

from q2s_tf.errors import InputError
from q2s_tf.server.server import Server
from q2s_tf.serving import ServingError, read_credentials
from q2s_tf.serving.client import Client
from q2s_tf.serving.query_command import print_results, read_filters, search

ROOT = Path(__file__).parents[1]
TITLES = {"d0": "red [bold]sofa[/bold]", "d1": "ghế \x1b[31mđỏ", "d2": "lamp"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    serving_models.save_all(folder)
    manifest = folder / "query_tower" / "1" / "assets.extra" / "manifest.json"
    manifest.write_text('{"channels": ["trigrams", "country", "text"]}')
    return folder


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    with Server(models, port=0) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.address) as connected:
        yield connected


def test_retrieves_the_best_documents_best_first(client: Client) -> None:
    queries, countries = ["red sofa", "lamp"], ["US", ""]
    matches = client.retrieve(queries, countries, k=4)
    vectors = client.embed_query(queries, countries).embedding
    assert matches.document_ids.shape == matches.scores.shape == (2, 4)
    for row, vector in enumerate(vectors):
        expected = serving_models.scores(vector)[:4]
        assert matches.document_ids[row].tolist() == [name for name, _ in expected]
        np.testing.assert_allclose(matches.scores[row], [score for _, score in expected], atol=1e-5)


def test_a_score_is_the_sum_of_its_parts(client: Client) -> None:
    alone = client.retrieve(["red sofa"], ["US"], k=3, lexical_weight=0)
    fused = client.retrieve(["red sofa"], ["US"], k=3, lexical_weight=2)
    np.testing.assert_allclose(fused.scores, alone.scores + 2 * serving_models.LEXICAL, atol=1e-6)
    np.testing.assert_allclose(fused.embedding_scores, alone.scores, atol=1e-6)
    np.testing.assert_allclose(fused.lexical_scores, serving_models.LEXICAL)
    with pytest.raises(InputError, match="lexical_weight must be a finite number, got nan"):
        client.retrieve(["red sofa"], ["US"], lexical_weight=float("nan"))


def test_the_least_score_leaves_empty_rows(client: Client) -> None:
    matches = client.retrieve(["red sofa"], ["US"], k=3, min_score=1.5)
    assert matches.document_ids.tolist() == [["", "", ""]]
    assert matches.scores.tolist() == [[-1, -1, -1]]


def test_the_defaults_are_those_of_the_signature_that_takes_no_options(client: Client) -> None:
    default = client.predict("retriever", {"query": ["lamp"], "country": ["FR"]})
    matches = client.retrieve(["lamp"], ["FR"])
    assert default["document_id"].tolist() == [[name.encode() for name in matches.document_ids[0]]]


def test_query_embeddings_come_with_their_channel_weights(client: Client) -> None:
    embedding, weights, version = client.embed_query(["red sofa"], ["US"])
    assert version == 1
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-6)
    exponentials = np.exp(embedding[:, :3])
    np.testing.assert_allclose(weights, exponentials / exponentials.sum(), atol=1e-6)


def test_missing_parts_of_a_document_are_sent_as_missing(client: Client) -> None:
    assert client.embed_document(["sofa", "tv"]).embedding.tolist() == [[4, 0, 0, 0], [2, 0, 0, 0]]
    assert client.embed_document(["sofa"]).channel_weights.tolist() == [[0] * serving_models.IMAGE_DIM]


def test_every_part_of_a_document_reaches_the_tower(client: Client) -> None:
    images = np.arange(2 * 3 * serving_models.IMAGE_DIM, dtype=np.float64).reshape(2, 3, -1)
    got = client.embed_document(["sofa", "tv"], ["red", ""], ["en", "vi"], ["US", "V"], images)
    assert got.embedding.tolist() == [[4, 3, 2, 2], [2, 0, 2, 1]]
    assert got.channel_weights.tolist() == images.sum(axis=1).tolist()


def test_a_model_gets_the_inputs_that_it_has_channels_for(tmp_path: Path) -> None:
    """Towers without country and images; then a version with them takes over."""
    serving_models.save_lean_towers(tmp_path)
    with Server(tmp_path, port=0, poll_seconds=0.05) as server, Client(server.address) as client:
        assert client.embed_query(["red sofa"], ["US"]).embedding.tolist() == [[8]]
        assert client.embed_document(["sofa"], ["red"]).embedding.tolist() == [[4]]
        serving_models.save_query_tower(tmp_path / "aside")
        (tmp_path / "aside").rename(tmp_path / "query_tower" / "2")
        serving_models.wait_for(client, "query_tower", 2)
        assert client.embed_query(["red sofa"], ["US"]).embedding.shape == (1, serving_models.DIM)


def test_plain_python_numbers_are_sent_as_tensorflow_would(client: Client) -> None:
    inputs: dict[str, Any] = {"embedding": [[1.0] + [0.0] * 7], "k": 2, "effort": 1, "min_score": 0.0}
    outputs = client.predict("retriever", inputs, "by_embedding")
    expected = serving_models.scores(np.eye(1, serving_models.DIM)[0])[:2]
    assert outputs["document_id"].tolist() == [[name.encode() for name, _ in expected]]


def test_status_and_metadata(client: Client) -> None:
    assert client.status("retriever") == [(1, "AVAILABLE", "")]
    signatures = client.metadata("retriever")
    assert set(signatures) == {"serving_default", "retrieve", "by_embedding", "index"}
    assert signatures["by_embedding"].inputs["embedding"] == ("float32", (None, serving_models.DIM))
    assert signatures["retrieve"].inputs["k"] == ("int32", ())
    assert signatures["retrieve"].outputs["document_id"].dtype == "string"


def test_a_refused_request_carries_code_and_message(client: Client) -> None:
    with pytest.raises(ServingError, match='NOT_FOUND: there is no model "toaster"') as caught:
        client.predict("toaster", {})
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    with pytest.raises(ServingError, match="no version 3 loaded"):
        client.predict("query_tower", {}, version=3)


def test_every_kind_of_column_is_accepted(client: Client) -> None:
    expected = client.retrieve(["red sofa", "lamp", ""], ["US", "US", "US"], k=3)
    texts = ["red sofa", "lamp", None]
    for queries in (
        texts, tuple(texts), iter(texts), np.array(texts, object), pd.Series(texts, index=[7, 8, 9]), pa.array(texts),
        pd.DataFrame({"query": ["red sofa", "lamp", np.nan]}), [b"red sofa", "lamp", pd.NA], pa.chunked_array([texts]),
    ):  # fmt: skip
        matches = client.retrieve(queries, "US", k=np.int64(3), effort=np.int32(1), min_score=np.float64(-1))
        assert matches.document_ids.tolist() == expected.document_ids.tolist()
    unknown = client.retrieve(["lamp"], None, k=3).document_ids.tolist()
    assert unknown == client.retrieve(["lamp"], [None], k=3).document_ids.tolist()
    for empty in ([], np.array([]), pd.Series([], dtype=object)):
        assert client.retrieve(empty, empty, k=3).document_ids.shape == (0, 3)
        assert client.embed_query(empty).embedding.shape == (0, serving_models.DIM)


def test_a_lone_surrogate_is_sent_as_bytes_that_are_not_utf_8(client: Client) -> None:
    surrogate = client.embed_query(["red \ud800 sofa"], ["US"])
    np.testing.assert_array_equal(surrogate.embedding, client.embed_query([b"red \xed\xa0\x80 sofa"], "US").embedding)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"queries": "red sofa"}, "queries must be a list of texts.*'red sofa'; wrap one text in"),
        ({"queries": None}, "queries must be a list of texts"),
        ({"queries": 7}, "queries must be a list of texts"),
        ({"queries": {"query": ["lamp"]}}, "queries must be a list of texts"),
        ({"queries": ["lamp", 3]}, "queries must be texts, got 3 in row 1"),
        ({"queries": [["lamp"]]}, "queries must be texts, got .'lamp'. in row 0"),
        ({"queries": pd.DataFrame({"query": ["a"], "country": ["US"]})}, "queries must be one column.*query, country"),
        ({"countries": [1.5]}, "countries must be texts, got 1.5 in row 0"),
        ({"filters": {"brand": [object]}}, "filter brand must be texts"),
        ({"filters": ["brand"]}, "filters must be a dict of values by column, got"),
        ({"version": 1.5}, "version must be a whole number of at least 0 and below 2.63, got 1.5"),
        ({"min_score": np.nan}, "min_score must be a finite number, got nan"),
        ({"min_score": "high"}, "min_score must be a finite number, got 'high'"),
        ({"min_score": -np.inf}, "min_score must be a finite number, got -inf"),
        *(
            ({name: value}, f"{name} must be a whole number of at least {least} and below 2.31, got")
            for name, least in (("k", 1), ("effort", 0))
            for value in (3.5, least - 1, 2**31, "3", None, True, np.float32(2), [3])
        ),
    ],
)
def test_wrong_arguments_are_refused_before_they_are_sent(
    client: Client, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        client.retrieve(**{"queries": ["lamp"], "countries": ["FR"], **arguments})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("query", np.array([None]), "a tensor of strings takes str or bytes"),
        ("query", ["\ud800"], "surrogates not allowed"),
        ("k", 2**31, "does not fit int32"),
        ("k", 2**64, "takes str or bytes"),
        ("embedding", [[1.0], [1.0, 2.0]], "inhomogeneous"),
        ("embedding", [[1.0, np.nan]], "must hold finite numbers"),
        ("min_score", np.float32("inf"), "must hold finite numbers"),
    ],
)
def test_inputs_that_cannot_be_sent_are_named(client: Client, name: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f'input "{name}" cannot be sent: .*{message}'):
        client.predict("retriever", {name: value})


@contextmanager
def scripted(
    answer: Callable[[int, grpc.ServicerContext], predict_pb2.PredictResponse],
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[tuple[str, list]]:
    """A server whose Predict is ``answer(number of the call, context)``; its address and its calls.

    By its metadata every model takes ``query`` and ``country``.
    """
    calls: list[predict_pb2.PredictRequest] = []

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request: predict_pb2.PredictRequest, context: grpc.ServicerContext) -> object:
            calls.append(request)
            return answer(len(calls), context)

        def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> object:
            signatures = get_model_metadata_pb2.SignatureDefMap()
            signature = signatures.signature_def["serving_default"]
            signature.method_name = "tensorflow/serving/predict"
            for name in ("query", "country"):
                signature.inputs[name].dtype = tf.string.as_datatype_enum
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.metadata["signature_def"].Pack(signatures)
            return response

    running = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), running)
    anywhere = "127.0.0.1:0"
    port = running.add_secure_port(anywhere, credentials) if credentials else running.add_insecure_port(anywhere)
    running.start()
    try:
        yield f"127.0.0.1:{port}", calls
    finally:
        running.stop(None).wait()


def tower_response(version: int, queries: list[bytes]) -> predict_pb2.PredictResponse:
    """The embedding of a query is the version and the query's number."""
    response = predict_pb2.PredictResponse()
    response.model_spec.version.value = version
    values = np.array([[version, int(query)] for query in queries], np.float32).reshape(-1, 2)
    for output in ("embedding", "channel_weights"):
        response.outputs[output].CopyFrom(tf.make_tensor_proto(values))
    return response


def test_many_queries_go_in_batches_and_keep_their_order() -> None:
    def answer(call: int, context: grpc.ServicerContext) -> predict_pb2.PredictResponse:
        return tower_response(5, list(calls[-1].inputs["query"].string_val))

    with scripted(answer) as (address, calls), Client(address, batch_size=4) as client:
        queries = [str(number) for number in range(10)]
        embeddings = client.embed_query(queries, ["US"] * 10)
        assert embeddings.embedding[:, 1].tolist() == list(range(10)) and embeddings.version == 5
        assert [list(call.inputs["query"].string_val) for call in calls] == [
            [b"0", b"1", b"2", b"3"], [b"4", b"5", b"6", b"7"], [b"8", b"9"],
        ]  # fmt: skip
        assert [call.model_spec.version.value for call in calls] == [0, 5, 5]
        assert client.embed_query([], []).embedding.shape == (0, 2)


def test_vectors_of_two_versions_never_come_in_one_answer() -> None:
    """Version 1 is replaced by 2 after the second batch, and 2 by 3 after the fourth."""

    def answer(call: int, context: grpc.ServicerContext) -> predict_pb2.PredictResponse:
        served = 1 if call <= 2 else 2 if call <= 5 else 3
        if calls[-1].model_spec.version.value not in (0, served):
            context.abort(grpc.StatusCode.NOT_FOUND, "gone")
        return tower_response(served, list(calls[-1].inputs["query"].string_val))

    with scripted(answer) as (address, calls), Client(address, batch_size=2) as client:
        embeddings = client.embed_query([str(number) for number in range(6)], [""] * 6)
        assert embeddings.embedding.tolist() == [[3, number] for number in range(6)] and embeddings.version == 3


def test_a_requested_version_that_is_gone_is_an_error() -> None:
    def answer(call: int, context: grpc.ServicerContext) -> predict_pb2.PredictResponse:
        context.abort(grpc.StatusCode.NOT_FOUND, "gone")

    with scripted(answer) as (address, _), Client(address, batch_size=2) as client:
        for version in (None, 4, "stable"):
            with pytest.raises(ServingError, match="NOT_FOUND: gone"):
                client.embed_query(["1", "2", "3"], [""] * 3, version=version)


def test_a_version_is_named_by_its_number_or_its_label() -> None:
    def answer(call: int, context: grpc.ServicerContext) -> predict_pb2.PredictResponse:
        return tower_response(1, [])

    with scripted(answer) as (address, calls), Client(address) as client:
        for version in (None, 7, "canary"):
            client.predict("m", {}, version=version)
        chosen = [call.model_spec.WhichOneof("version_choice") for call in calls]
        assert chosen == [None, "version", "version_label"]
        assert (calls[1].model_spec.version.value, calls[2].model_spec.version_label) == (7, "canary")


def test_lists_of_unlike_lengths_are_refused_before_they_are_sent(client: Client) -> None:
    with pytest.raises(InputError, match="got 2 of query, 1 of country; give equally many"):
        client.retrieve(["red sofa", "lamp"], ["US"])
    with pytest.raises(InputError, match="1 of title, .* 2 of image_embeddings"):
        client.embed_document(["sofa"], image_embeddings=np.zeros((2, 1, serving_models.IMAGE_DIM)))


def test_deadline_and_batch_size_must_be_positive() -> None:
    for seconds, rule in ((0, "above 0, got 0"), (np.nan, "a finite number, got nan"), ("soon", "a finite number")):
        with pytest.raises(InputError, match=f"timeout_seconds must be {rule}"):
            Client(timeout_seconds=seconds)
    with pytest.raises(InputError, match="batch_size must be a whole number of at least 1"):
        Client(batch_size=0)


def test_a_request_is_repeated_while_the_server_is_unavailable() -> None:
    def answer(call: int, context: grpc.ServicerContext) -> predict_pb2.PredictResponse:
        if call < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        return predict_pb2.PredictResponse(outputs={"x": tf.make_tensor_proto([call])})

    with scripted(answer) as (address, calls), Client(address) as client:
        assert client.predict("m", {})["x"].tolist() == [3]
        assert len(calls) == 3


def test_a_request_of_any_size_is_repeated() -> None:
    def answer(call: int, context: grpc.ServicerContext) -> predict_pb2.PredictResponse:
        if call < 2:
            context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        return predict_pb2.PredictResponse()

    with scripted(answer) as (address, calls), Client(address) as client:
        client.predict("m", {"x": np.zeros(2_000_000, np.float32)})
        assert len(calls) == 2


def test_a_request_is_not_repeated_without_end() -> None:
    def answer(call: int, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "down")

    with scripted(answer) as (address, calls), Client(address) as client:
        with pytest.raises(ServingError, match="UNAVAILABLE: down"):
            client.predict("m", {})
        assert len(calls) == 4


def test_a_request_that_is_refused_is_not_repeated() -> None:
    def answer(call: int, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")

    with scripted(answer) as (address, calls), Client(address) as client:
        for requests in (1, 2):
            with pytest.raises(ServingError, match="INVALID_ARGUMENT: no"):
                client.embed_query(["lamp"], [""])
            assert len(calls) == requests


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_request_with_another_error_is_not_repeated(code: grpc.StatusCode) -> None:
    def answer(call: int, context: grpc.ServicerContext) -> None:
        context.abort(code, "no")

    with scripted(answer) as (address, calls), Client(address) as client:
        with pytest.raises(ServingError, match=f"{code.name}: no"):
            client.predict("m", {})
        assert len(calls) == 1


def test_a_request_ends_at_the_deadline() -> None:
    release = threading.Event()

    def answer(call: int, context: grpc.ServicerContext) -> predict_pb2.PredictResponse:
        release.wait(30)
        return predict_pb2.PredictResponse()

    with scripted(answer) as (address, _), Client(address, timeout_seconds=0.2) as client:
        with pytest.raises(ServingError) as caught:
            client.predict("m", {})
        release.set()
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


# --- TLS


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates as the operator's script makes them for tests."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("keys")
    script = ROOT / "serving_config" / "make_test_certificates.sh"
    subprocess.run([script, folder], check=True, capture_output=True, timeout=60)
    return folder


def server_credentials(keys: Path, mutual: bool) -> grpc.ServerCredentials:
    pair = (keys / "server.key").read_bytes(), (keys / "server.pem").read_bytes()
    return grpc.ssl_server_credentials([pair], (keys / "ca.pem").read_bytes() if mutual else None, mutual)


def test_tls_connects_clients_that_trust_the_server(keys: Path) -> None:
    credentials = server_credentials(keys, mutual=False)
    with scripted(lambda *_: tower_response(1, []), credentials) as (address, _):
        with Client(address, credentials=read_credentials(keys / "ca.pem")) as client:
            assert client.predict("m", {})["embedding"].shape == (0, 2)
        for wrong in (None, read_credentials(), read_credentials(keys / "client.pem")):
            with Client(address, 5, wrong) as client, pytest.raises(ServingError) as caught:
                client.predict("m", {})
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_the_query_tool_reports_an_untrusted_server_in_one_line(keys: Path) -> None:
    with scripted(lambda *_: tower_response(1, []), server_credentials(keys, mutual=False)) as (address, _):
        status, output, errors = run("lamp", "--target", address, "--tls-ca", str(keys / "client.pem"))
    assert (status, output, errors.count("\n")) == (2, "", 1), errors
    assert "no server answers over TLS" in errors and "CERTIFICATE_VERIFY_FAILED" in errors


def test_mutual_tls_connects_known_clients_only(keys: Path) -> None:
    with scripted(lambda *_: tower_response(1, []), server_credentials(keys, mutual=True)) as (address, _):
        known = read_credentials(keys / "ca.pem", keys / "client.pem", keys / "client.key")
        with Client(address, credentials=known) as client:
            assert client.predict("m", {})["embedding"].shape == (0, 2)
        with Client(address, 5, read_credentials(keys / "ca.pem")) as client, pytest.raises(ServingError):
            client.predict("m", {})


def test_unusable_keys_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("a letter")
    with pytest.raises(InputError, match="text.pem must be a PEM file"):
        read_credentials(tmp_path / "text.pem")
    with pytest.raises(InputError, match="none.pem cannot be read: No such file"):
        read_credentials(tmp_path / "none.pem")
    with pytest.raises(InputError, match="certificate and key go together"):
        read_credentials(certificate=tmp_path / "text.pem")


# --- tools/query.py


def run(*arguments: str) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    result = preloaded.run([ROOT / "tools" / "query.py", *arguments], env=environment, timeout=120)
    return result.returncode, result.stdout, result.stderr


def test_the_query_tool_prints_a_ranked_table(server: Server, client: Client, models: Path, tmp_path: Path) -> None:
    documents = tmp_path / "documents.tsv"
    rows = [f"{name}\t{TITLES.get(name, 'other ' + name)}\ten" for name in serving_models.IDS if name != "d9"]
    documents.write_text("\n".join(["document_id\ttitle\tlanguage", *rows]) + "\n", encoding="utf-8")
    status, output, errors = run(
        "red sofa", "--country", "US", "--k", "30", "--target", server.address,
        "--documents", str(documents), "--models", str(models),
    )  # fmt: skip
    assert status == 0, errors
    header, *lines, weights = output.splitlines()
    assert header.split() == ["rank", "score", "cosine", "BM25", "document_id", "language", "title"]
    expected = serving_models.scores(client.embed_query(["red sofa"], ["US"]).embedding[0])
    lexical = f"{serving_models.LEXICAL:.4f}"
    assert [line.split()[:5] for line in lines] == [
        [str(rank), f"{score:.4f}", f"{score:.4f}", lexical, name] for rank, (name, score) in enumerate(expected, 1)
    ]
    titles = {line.split()[4]: line.split()[6:] for line in lines}
    assert titles["d0"] == ["red", "[bold]sofa[/bold]"] and titles["d9"] == []
    assert f"warning: 1 of 30 results are not in --documents {documents}, for example d9: give the" in errors
    assert "\x1b" not in output and "đỏ" in output
    assert weights.split()[:3] == ["channel", "weights:", "trigrams"] and "text" in weights


def test_the_query_tool_prints_pages(server: Server, client: Client, models: Path) -> None:
    arguments = ["lamp", "--k", "12", "--pages", "3", "--version", "1", "--target", server.address]
    status, output, errors = run(*arguments, "--models", str(models))
    assert status == 0, errors
    header, *lines, _ = output.splitlines()
    assert header.split() == ["page", "rank", "score", "cosine", "BM25", "document_id"]
    expected = [name for name, _ in serving_models.scores(client.embed_query(["lamp"], [""]).embedding[0])]
    shown = [(int(page), int(rank), name) for page, rank, *_, name in map(str.split, lines)]
    assert shown == [(1 + index // 12, 1 + index, name) for index, name in enumerate(expected)]


def test_filters_are_written_as_column_and_value() -> None:
    assert read_filters(["country=US", "title=a=b", "language="]) == {"country": "US", "title": "a=b", "language": ""}
    for wrong in (["country"], ["=US"]):
        with pytest.raises(InputError, match='must be column=value, got ".*"'):
            read_filters(wrong)
    with pytest.raises(InputError, match='got "country" twice'):
        read_filters(["country=US", "country=VN"])


def test_channels_without_known_names_are_numbered(client: Client, tmp_path: Path) -> None:
    results = search(client, "lamp", min_score=1.5, models=tmp_path)
    assert [name for name, _ in results.channel_weights] == ["channel 1", "channel 2", "channel 3"]
    output = StringIO()
    print_results(results, None, Console(file=output, width=100))
    assert output.getvalue().startswith("no document reaches the minimum score\nchannel weights: channel 1 0.")


def test_a_query_that_the_server_refuses_is_bad_input(tmp_path: Path) -> None:
    serving_models.save_lean_towers(tmp_path)
    with Server(tmp_path, port=0) as server, Client(server.address) as client, pytest.raises(InputError) as caught:
        search(client, "lamp")
    assert str(caught.value).startswith(
        f'the server at {server.address} refused: NOT_FOUND: there is no model "retriever"'
    )


def test_a_version_that_is_not_served_is_bad_input(client: Client) -> None:
    for version in (3, "canary"):
        with pytest.raises(InputError, match="refused: .*(version 3|label .canary)"):
            search(client, "lamp", version=version)


def test_the_query_tool_reports_errors_in_one_line(server: Server, tmp_path: Path) -> None:
    cases = {
        "start one with: q2s serve": ["lamp", "--target", "127.0.0.1:1"],
        "Invalid value for '--k'": ["lamp", "--k", "0"],
        "Invalid value for '--effort'": ["lamp", "--effort", "-1"],
        "retriever has no filters": ["lamp", "--filter", "country=US", "--target", server.address],
        "there is no such file": ["lamp", "--documents", str(tmp_path / "none.tsv")],
    }
    for fragment, arguments in cases.items():
        status, output, errors = run(*arguments)
        assert (status, output, errors.count("\n")) == (2, "", 1), errors
        assert errors.startswith("error: ") and fragment in errors


def test_tensorflow_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, q2s_tf.serving, q2s_tf.server.server, q2s_tf.serving.folders, q2s_tf.serving.query_command\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
