"""Cassettes: recorded answers that replace providers."""
