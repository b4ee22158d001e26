"""DataFrames of the store."""
