"""Rendering for people: HTML, terminal text and plots."""
