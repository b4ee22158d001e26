"""The report as one HTML file that needs no network, server or library."""

from llmkit.evals.report.html.page import render_page

__all__ = ["render_page"]
