"""Reports of evaluations: analysis, frames, notes, plots and HTML."""
