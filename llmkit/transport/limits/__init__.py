"""Limits on what is sent to a provider: at once, per minute, and per daily quota."""

from llmkit.transport.limits.admission import Admission, Limits

__all__ = ["Admission", "Limits"]
