"""Measures of a reply that training and serving share (docs/decisions/0012-measures-are-shared.md)."""
