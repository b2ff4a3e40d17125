"""How Polytone is deployed; what is Python in it is the second composition root, on Ray Serve."""
