"""Write the table of settings into the README, from the code; with --check only check it."""

import sys
from enum import Enum
from pathlib import Path

from pydantic.fields import FieldInfo

from llmkit.settings import ENV_PREFIX, LLMSettings

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- settings: generated from llmkit/settings.py by scripts/settings_table.py -->", "<!-- /settings -->"


def build_table() -> str:
    """Return the settings as a Markdown table."""
    rows = [
        f"| `{ENV_PREFIX}{name.upper()}` | {_format_default(field)} | {field.description} |"
        for name, field in LLMSettings.model_fields.items()
    ]
    return "\n".join(["| variable | default | what it does |", "|---|---|---|", *rows])


def _format_default(field: FieldInfo) -> str:
    value = field.default
    if value is None:
        return ""
    shown = value.value if isinstance(value, Enum) else value
    return f"`{str(shown).lower() if isinstance(shown, bool) else str(shown).rstrip('/')}`"


def update_readme(text: str) -> str:
    """Return the README with the current table in it."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{build_table()}\n{END}{after}"


def main() -> int:
    """Write, or with --check compare; 1 when the README is behind the code."""
    text = README.read_text(encoding="utf-8")
    wanted = update_readme(text)
    if "--check" in sys.argv:
        print("README settings are current" if text == wanted else "README settings are behind: run this script")
        return int(text != wanted)
    README.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
