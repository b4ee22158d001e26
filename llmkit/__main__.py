"""`python -m llmkit` is the command line."""

from llmkit.cli import main

main()
