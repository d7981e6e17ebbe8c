"""q2s_tf: Que2Search for TensorFlow, from a marketplace's search log to semantic retrieval on TF Serving.

`load(run)` gives the trained Keras towers of a run directory. TensorFlow is imported when it is first needed.
"""

from typing import TYPE_CHECKING

from q2s_tf.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from q2s_tf.models import Towers

__version__ = "0.2.0"
__all__ = ["InputError", "load"]


def load(run: "Path | str", stage: int | None = None) -> "Towers":
    """The trained towers of a run directory: see `q2s_tf.models.load`."""
    from q2s_tf.models import load as load_towers

    return load_towers(run, stage)
