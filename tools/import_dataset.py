#!/usr/bin/env python
"""The same as `q2s import-dataset`."""

from q2s_tf.cli import run
from q2s_tf.commands.data import import_dataset as main

if __name__ == "__main__":
    run(main)
