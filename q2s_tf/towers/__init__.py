"""The two towers: from raw inputs to unit vectors, and back from a run directory."""

from q2s_tf.towers.encoders import build_encoder
from q2s_tf.towers.preprocessing import Preprocessor
from q2s_tf.towers.run import STAGE_WEIGHTS, load, save_weights
from q2s_tf.towers.towers import Tower, Towers, build_towers

__all__ = ["STAGE_WEIGHTS", "Preprocessor", "Tower", "Towers", "build_encoder", "build_towers", "load", "save_weights"]
