"""Polytone: one base model, many brand voices."""

__version__ = "0.1.0"
