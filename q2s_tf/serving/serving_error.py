"""The one exception of a gRPC request, on either side of the wire."""

import grpc


class ServingError(RuntimeError):
    """A request that was not answered: on the server why, on the client what came back.

    Attributes:
        code: The gRPC status code.
        message: One line that names what is wrong.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        """The text of the exception is ``CODE: message``."""
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
