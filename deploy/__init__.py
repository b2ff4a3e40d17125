"""Deployment; the Python in it is the second composition root, on Ray Serve."""
