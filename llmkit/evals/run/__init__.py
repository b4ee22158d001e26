"""The evaluation runner: plan, work queue, coordination and budget."""
