"""Evaluations around a model: one of them, and suites of many over many checkpoints."""
