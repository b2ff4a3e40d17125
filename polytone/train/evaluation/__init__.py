"""A version compared with its base and its parent, and judged by the gates of its recipe."""
