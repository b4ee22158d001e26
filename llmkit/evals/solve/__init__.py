"""Functions that answer a sample in several calls: their model, the record of their steps, and their identity."""
