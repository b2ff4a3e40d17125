"""Base model and recipe -> adapter version. Never imports serve."""
