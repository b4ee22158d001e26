"""Prices of tokens: looking them up, and reading them from files."""
