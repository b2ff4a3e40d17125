"""Measures of a reply, shared by training and serving (docs/decisions/0012-measures-are-shared.md)."""
