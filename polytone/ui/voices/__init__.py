"""The voices tab."""
