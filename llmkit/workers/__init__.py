"""Engines that start jobs on workers, and the parcel in which work travels there."""

__all__ = ["TASK_MODULE_PREFIX"]

# Modules of this prefix are made from task files, and no other process can import them.
TASK_MODULE_PREFIX = "llmkit_task_"
