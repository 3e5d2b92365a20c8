"""Runs, methods and the paper's experiments, with what they show."""
