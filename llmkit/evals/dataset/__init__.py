"""Datasets and the files they are loaded from."""
