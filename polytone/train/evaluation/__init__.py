"""Comparing a version with its base and its parent, and holding it against the gates of its recipe."""
