"""How much is sent to a provider: at once, in a minute, and until its quota of the day is used up."""

from llmkit.transport.limits.admission import Admission, Limits

__all__ = ["Admission", "Limits"]
