"""Training: a recipe on a base model becomes an adapter version. Never imports serve."""
