"""The report of an evaluation as one HTML file that needs nothing else: no network, no server, no library."""

from llmkit.evals.report.html.page import report_page

__all__ = ["report_page"]
