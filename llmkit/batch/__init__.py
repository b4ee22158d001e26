"""Machinery that `map` and evaluation share: the worker pool, route health and the progress bar."""
