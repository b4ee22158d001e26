"""One logical call: its validation, its record in the store and the liveness of its process."""
