"""Evaluation: metrics of the towers on judged pairs and over the whole catalogue, compared with BM25."""
