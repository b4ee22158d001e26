"""Whose process lives."""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta

from llmkit.calls.liveness import current_owner, is_alive, looks_abandoned
from llmkit.types import utc_now

OTHER_MACHINE = "other-boot|pid:[1]|7|99"


def _owner_of_a_dead_process() -> str:
    code = "from llmkit.calls.liveness import current_owner; print(current_owner())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_this_process_lives_and_a_dead_one_does_not() -> None:
    assert is_alive(current_owner()) is True
    assert is_alive(_owner_of_a_dead_process()) is False


def test_a_process_id_used_again_is_another_process() -> None:
    assert is_alive(current_owner() + "1") is False


def test_nothing_is_known_of_another_machine() -> None:
    assert is_alive(OTHER_MACHINE) is None
    assert is_alive("nonsense") is None


def test_a_dead_process_is_abandoned_at_once_and_a_living_one_never() -> None:
    long_ago = utc_now() - timedelta(days=1)
    assert looks_abandoned(_owner_of_a_dead_process(), utc_now(), 60, utc_now())
    assert not looks_abandoned(current_owner(), long_ago, 60, utc_now())


def test_another_machine_is_judged_by_its_silence() -> None:
    now = utc_now()
    assert not looks_abandoned(OTHER_MACHINE, now - timedelta(seconds=59), 60, now)
    assert looks_abandoned(OTHER_MACHINE, now - timedelta(seconds=61), 60, now)
    assert not looks_abandoned(OTHER_MACHINE, now + timedelta(hours=1), 60, now)  # a clock was set back
