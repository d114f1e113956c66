"""Evaluation metrics that are comparable with the literature."""
