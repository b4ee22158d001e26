"""Names of file systems, for messages."""

from __future__ import annotations

from pathlib import Path

__all__ = ["find_file_system"]

MOUNTS = Path("/proc/self/mounts")


def find_file_system(path: Path, mounts: Path = MOUNTS) -> str:
    """Return the type of the file system of a path, such as `ext4` or `nfs4`; `unknown` where it cannot be read."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown"
    found = "unknown"
    longest = -1
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        # Blanks in a path are written as octal numbers.
        folder = Path(fields[1].replace("\\040", " "))
        if len(folder.parts) > longest and path.is_relative_to(folder):
            found, longest = fields[2], len(folder.parts)
    return found
