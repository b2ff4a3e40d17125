"""Adapter versions -> chat API. Never imports train."""
