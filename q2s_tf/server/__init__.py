"""The embedded server: TensorFlow Serving's gRPC and REST APIs for exported servables, in one Python process."""
