"""Finding out what single models can do: by asking their server, and from what earlier trials left on disk."""
