"""Insight: why a run scores as it does (weights, importance, one score taken apart), and the report a team acts on."""
