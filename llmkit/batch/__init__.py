"""Machinery that `map` and evaluation share: the worker pool, route health, templates and the progress bar."""
