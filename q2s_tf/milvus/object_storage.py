"""Import of a large catalogue: Parquet files in the object storage of a Milvus cluster, which Milvus reads itself.

milvus-lite has no import. The upload and the requests are tested with scripted servers, not with a cluster.
"""

import os
import tempfile
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from q2s_tf.cli import console
from q2s_tf.errors import InputError

if TYPE_CHECKING:
    from pymilvus import CollectionSchema

CHUNK_BYTES = 128 << 20
"""Size of a file, before compression."""
POLL_SECONDS = 2.0
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


class ObjectStorage(NamedTuple):
    """A bucket of an S3 API, the one that Milvus is configured with."""

    endpoint: str
    secure: bool
    bucket: str
    access_key: str
    secret_key: str


def read_storage(url: str) -> ObjectStorage:
    """Parse the address of a bucket, `http://host:9000/bucket`; the keys are in the environment.

    Raises:
        InputError: It is not such an address, or a key is not there.
    """
    parts = urlsplit(url)
    bucket = parts.path.strip("/")
    if parts.scheme not in ("http", "https") or not parts.netloc or not bucket or "/" in bucket:
        raise InputError(f"storage {url}: must be the address of a bucket, such as http://127.0.0.1:9000/a-bucket")
    if absent := [name for name in KEYS if not os.environ.get(name)]:
        raise InputError(f"storage {url}: set {absent[0]} in the environment to the key of the bucket")
    return ObjectStorage(parts.netloc, parts.scheme == "https", bucket, *(os.environ[name] for name in KEYS))


def import_rows(
    storage: ObjectStorage,
    uri: str,
    token: str,
    schema: "CollectionSchema",
    name: str,
    batches: Iterable[list[dict[str, Any]]],
) -> int:
    """Write rows as Parquet files into the storage of Milvus, and let it import them into a collection.

    Args:
        storage: Where the files go, below `q2s_tf/<name>`. They can be removed afterwards.
        uri: The address of Milvus, whose REST API starts the import.
        token: `user:password` or an API key.
        schema: Of the collection.
        name: The collection.
        batches: Rows by field.

    Returns:
        The number of rows.

    Raises:
        InputError: The storage or the import failed, or not all rows arrived.
    """
    from minio import Minio
    from minio.error import MinioException
    from pymilvus import MilvusException
    from pymilvus.bulk_writer import RemoteBulkWriter, bulk_import, get_import_progress
    from urllib3.exceptions import HTTPError

    where, count = f"storage {storage.endpoint}/{storage.bucket}", 0
    connection = RemoteBulkWriter.S3ConnectParam(
        storage.bucket, storage.endpoint, storage.access_key, storage.secret_key, storage.secure
    )
    try:
        bucket = Minio(storage.endpoint, storage.access_key, storage.secret_key, secure=storage.secure)
        if not bucket.bucket_exists(storage.bucket):
            raise InputError(f"{where}: there is no such bucket; name the one that Milvus is configured with")
        with tempfile.TemporaryDirectory() as folder:
            with RemoteBulkWriter(schema, f"q2s_tf/{name}", connection, CHUNK_BYTES, local_path=folder) as writer:
                for rows in batches:
                    for row in rows:
                        writer.append_row(row)
                    count += len(rows)
                writer.commit()
            files = writer.batch_files
        if not count:
            return 0
        job = bulk_import(uri, name, files=files, api_key=token).json()["data"]["jobId"]
        with console.status(f"importing {count:,} documents"):
            while True:
                progress = get_import_progress(uri, job, api_key=token).json()["data"]
                if progress["state"] in ("Completed", "Failed"):
                    break
                time.sleep(POLL_SECONDS)
    except (MilvusException, MinioException, HTTPError, OSError) as error:
        reason = (str(error).splitlines() or ["?"])[0][:300]
        raise InputError(f"{where}: the import failed: {reason}") from error
    # An upload that fails in the thread of the writer is not an exception here.
    arrived = int(progress.get("importedRows", 0))
    if progress["state"] == "Failed" or arrived != count:
        reason = progress.get("reason") or "see the log of Milvus"
        raise InputError(f"{where}: {arrived:,} of {count:,} documents were imported: {reason}")
    return count
