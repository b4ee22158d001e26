"""The report of an evaluation as one HTML file that needs nothing else: no network, no server, no library."""

from llmkit.evals.report.html.page import render_page

__all__ = ["render_page"]
