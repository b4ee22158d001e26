"""Fail when site-packages contains code that runs at every start of Python and is not known to us.

Compromised releases have hidden in `*.pth` files and in `sitecustomize.py`.
"""

import sys
import sysconfig
from pathlib import Path

# What may be there: our own editable install, coverage's subprocess hook, and setuptools' shim.
KNOWN = {"_editable_impl_llmkit_research.pth", "a1_coverage.pth", "distutils-precedence.pth"}
FORBIDDEN = {"sitecustomize.py", "usercustomize.py"}


def find_strangers(site_packages: Path) -> list[Path]:
    """Return the files that run at start-up and are not in the list."""
    found = [path for path in site_packages.glob("*.pth") if path.name not in KNOWN]
    return sorted(found + [path for path in site_packages.iterdir() if path.name in FORBIDDEN])


def main() -> int:
    """Print what was found; 1 when there is anything."""
    found = find_strangers(Path(sysconfig.get_paths()["purelib"]))
    for path in found:
        print(f"unexpected start-up code: {path.name}: {path.read_text(errors='replace')[:200]!r}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
