"""The embedded server: TensorFlow Serving's gRPC and REST APIs over exported servables, in one Python process."""
