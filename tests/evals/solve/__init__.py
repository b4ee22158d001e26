"""Tests of functions that answer a sample in several calls."""
