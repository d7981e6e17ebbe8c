"""The base of layers that have their constructor arguments as attributes."""

import inspect
from typing import Any

import keras


class ConfiguredLayer(keras.layers.Layer):
    """A layer whose config is those of its constructor arguments that are attributes of the same name."""

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        names = [name for name in inspect.signature(type(self).__init__).parameters if name not in ("self", "kwargs")]
        return {**super().get_config(), **{name: getattr(self, name) for name in names if hasattr(self, name)}}
