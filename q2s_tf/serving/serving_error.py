"""The exception of a failed request, on the server and on the client."""

import grpc


class ServingError(RuntimeError):
    """A request that failed; the text is ``CODE: message``.

    Attributes:
        code: The gRPC status code.
        message: One line that names the cause.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
