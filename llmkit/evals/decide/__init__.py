"""Routing decisions from recorded results: policies, their forecast, the frontier and ranks."""
