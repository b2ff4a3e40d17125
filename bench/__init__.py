"""Benchmarks and proofs that anyone can run against a running server."""
