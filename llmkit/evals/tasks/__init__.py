"""Tasks, the variants they compare, and the files they are loaded from."""
