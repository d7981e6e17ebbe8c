"""Report of an evaluation, and explanation of a score: channel weights, channel importance, the embedding space."""
