"""What a request may ask of the server."""

from typing import NamedTuple

from q2s_tf.errors import InputError


class Limits(NamedTuple):
    """A request beyond one of these is refused before its graph runs.

    Attributes:
        max_request_bytes: The largest message that is read.
        max_rows: The largest batch.
        max_seconds: The longest it may have waited for a thread. A graph that runs is not broken off.
    """

    max_request_bytes: int = 64 << 20
    max_rows: int = 4096
    max_seconds: float = 10.0

    def check(self) -> None:
        """Raises an `InputError` unless all are above 0 and a message fits what gRPC counts with."""
        for name, value in self._asdict().items():
            if not 0 < value < 2**31:
                raise InputError(f"{name} must be above 0 and below 2^31, got {value}")
