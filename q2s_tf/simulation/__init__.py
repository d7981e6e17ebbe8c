"""A simulated marketplace: the default input of q2s_tf, a catalogue, a search log and judgements.

docs/marketplace.md describes what is modelled and what is not.
"""

from q2s_tf.simulation.generate import MIN_LISTINGS, START, Summary, make_marketplace

__all__ = ["MIN_LISTINGS", "START", "Summary", "make_marketplace"]
