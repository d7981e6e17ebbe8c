"""Evaluation: metrics of the towers on judgements and over the catalogue, and the lexical baseline."""
