"""Connections to Milvus, or to milvus-lite in this process, and its errors."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from q2s_tf.errors import InputError
from q2s_tf.extras import require
from q2s_tf.serving.serving_error import ServingError

if TYPE_CHECKING:
    from pymilvus import MilvusClient

SCHEMES = ("http://", "https://", "tcp://", "unix:")
MISSING = (100, 1600)
"""Milvus's codes of a collection and of an alias that do not exist; milvus-lite has the first for both."""


def connect(uri: str, token: str = "", timeout_seconds: float = 10.0, create: bool = False) -> "MilvusClient":
    """Connect to Milvus.

    milvus-lite runs in this process until the process ends. Clients of the same folder share it; another process
    cannot open the folder at the same time.

    Args:
        uri: The address of a Milvus, `http://host:19530`, or the folder of milvus-lite, `catalogue.db`.
        token: `user:password` or an API key, if Milvus requires one.
        timeout_seconds: How long to wait for the connection.
        create: Create the folder of milvus-lite if it does not exist.

    Raises:
        InputError: No Milvus answers, `uri` is not an address or a folder of milvus-lite, or another process has it
            open.
    """
    require("milvus")
    remote = uri.startswith(SCHEMES)
    if not remote:
        _check_folder(uri, create)
    from pymilvus import MilvusClient, MilvusException

    # pymilvus and milvus-lite log each exception with its traceback, and raise it as well. The server of milvus-lite is
    # asked for a method that it does not have, and logs this too.
    for name in ("pymilvus", "milvus_lite", *(() if remote else ("grpc._server",))):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return MilvusClient(uri, token=token, timeout=timeout_seconds)
    except (MilvusException, ValueError, grpc.RpcError) as error:
        reason = getattr(error, "message", "") or str(error)
        if not remote and _is_locked(Path(uri)):
            raise InputError(
                f"uri {uri}: another process has it open, and milvus-lite allows one; end that process, or share the "
                f"folder with: milvus-lite server --host 127.0.0.1 --data-dir {uri}"
            ) from error
        remedy = "check the address, that Milvus runs there, and the token" if remote else "publish into a new folder"
        raise InputError(f"uri {uri}: cannot be opened ({_first_line(reason)}); {remedy}") from error


def _check_folder(uri: str, create: bool) -> None:
    path = Path(uri)
    if not uri.endswith(".db"):
        raise InputError(
            f"uri {uri or repr(uri)}: must be an address such as http://127.0.0.1:19530, or a folder of milvus-lite "
            "whose name ends in .db"
        )
    if not path.parent.is_dir():
        raise InputError(f"uri {uri}: there is no folder {path.parent}; create it, or name another one")
    if path.exists() and not path.is_dir():
        raise InputError(f"uri {uri}: must be a folder of milvus-lite, and it is a file; name another one")
    if not create and not path.is_dir():
        raise InputError(f"uri {uri}: there is no such catalogue; publish one with q2s publish")


def _is_locked(folder: Path) -> bool:
    """Whether milvus-lite has the folder open, in any process."""
    try:
        with (folder / "LOCK").open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


@contextmanager
def engine_errors() -> Iterator[None]:
    """Turn an error of Milvus into a `ServingError`: NOT_FOUND if the collection or alias does not exist.

    A Milvus that does not answer is UNAVAILABLE or DEADLINE_EXCEEDED.
    """
    from pymilvus import MilvusException

    try:
        yield
    except grpc.RpcError as error:
        raise ServingError(error.code(), _first_line(error.details() or str(error))) from error
    except MilvusException as error:
        code, message = grpc.StatusCode.UNKNOWN, _first_line(error.message or str(error))
        if error.code in MISSING:
            code = grpc.StatusCode.NOT_FOUND
        elif error.code == 2 or "UNAVAILABLE" in message:
            code = grpc.StatusCode.UNAVAILABLE
        elif "DEADLINE_EXCEEDED" in message or "timeout" in message.lower():
            code = grpc.StatusCode.DEADLINE_EXCEEDED
        raise ServingError(code, message) from error


def _first_line(message: str) -> str:
    return (message.splitlines() or ["?"])[0][:300]
