"""Commands under `llmkit eval`."""
