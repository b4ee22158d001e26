"""The command line in a terminal of 80 columns, and processes that load no more than they need."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path

import pytest

from llmkit.cli.output import make_table, print_rich
from llmkit.display.fitting_table import FittingTable
from llmkit.testing import Fault, OllamaServer, Reply
from tests.cli.test_cli import LLMKIT, TASK, run

COLUMNS = 80
HANG_BOUND_S = 250
POSITIVE = Reply('{"label": "positive"}')
NOTICE_HEAVY = """
import atexit, sys
atexit.register(lambda: print("heavy:", [n for n in ("litellm", "pydantic_ai") if n in sys.modules], file=sys.stderr))
from llmkit.__main__ import main
sys.argv = ["llmkit", *sys.argv[1:]]
main()
"""


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[OllamaServer]:
    with OllamaServer([POSITIVE]) as server:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", server.url)
        monkeypatch.setenv("LLM_MAX_RETRIES", "0")
        yield server


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    lines = [{"input": f"text {n}", "target": "positive" if n % 2 else "negative"} for n in range(4)]
    (tmp_path / "sentiment.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    path = tmp_path / "sentiment.py"
    path.write_text(TASK, encoding="utf-8")
    return path


def run_in_terminal(*arguments: str) -> tuple[int, list[str]]:
    """Return the exit code and the lines of a command in a terminal of 80 columns."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.pop("COLUMNS", None)
        os.execv(sys.executable, [*LLMKIT, *arguments])
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    output = b""
    while True:
        try:
            piece = os.read(terminal, 65_536)
        except OSError:  # how Linux reports the end
            piece = b""
        if not piece:
            break
        output += piece
    os.close(terminal)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # What a busy machine shows for a moment while it loads is erased again.
    stays = re.sub(r"[^\r\n]*\r\x1b\[K", "", output.decode())
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stays)
    return code, re.split(r"\r\n|\r|\n", text)


def evaluate(task_file: Path, name: str, *more: str) -> None:
    done = run("eval", "run", str(task_file), "--routes", "ollama/llama3.2", "--name", name, *more)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_commands_that_call_nothing_load_no_model_library(
    ollama: OllamaServer, task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_WARM_UP", "true")  # the default of people
    evaluate(task_file, "done")
    finished = ["eval", "run", str(task_file), "--routes", "ollama/llama3.2", "--name", "done"]
    for command in (
        ["--help"],
        ["eval", "run", "--help"],
        ["runs"],
        ["eval", "list"],
        ["eval", "report", "done"],
        ["eval", "compare", "done", "done"],
        ["db", "stats"],
        finished,
    ):
        done = subprocess.run(
            [sys.executable, "-c", NOTICE_HEAVY, *command],
            capture_output=True,
            text=True,
            timeout=HANG_BOUND_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (heavy,) = [line for line in done.stderr.splitlines() if line.startswith("heavy:")]
        assert "litellm" not in heavy, command
        assert command is finished or heavy == "heavy: []", command


@pytest.mark.slow
def test_chat_streams_in_a_terminal_until_ctrl_c(ollama: OllamaServer) -> None:
    ollama.script(Fault.stream_pace(0.05, Reply("one\x1b[2J two " * 500)))
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [*LLMKIT, "chat", "Count", "--route", "ollama/llama3.2"])
    output = b""
    while b"two" not in output:
        output += os.read(terminal, 65_536)
    os.kill(pid, signal.SIGINT)
    with suppress(OSError):  # how Linux reports the end
        while piece := os.read(terminal, 65_536):
            output += piece
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    lines = output.decode().replace("\r\n", "\n").rpartition("one\\x1b[2J two ")[2].splitlines()
    assert lines[-1].startswith("Interrupted.")
    assert "Traceback" not in output.decode()
    assert ollama.wait_until_idle(60)
    assert ollama.calls[-1].client_disconnected


@pytest.mark.slow
@pytest.mark.parametrize("after", ["start", "litellm"])
def test_ctrl_c_while_loading_ends_in_one_line(ollama: OllamaServer, after: str, tmp_path: Path) -> None:
    # Imports announce themselves in a file, so that the interruption comes in the middle of one.
    (tmp_path / "sitecustomize.py").write_text(
        f"""
import importlib.abc, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Announce(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {"typer" if after == "start" else "litellm.main"!r}:
            open("reached", "w").close()
sys.meta_path.insert(0, Announce())
""",
        encoding="utf-8",
    )
    command = [*LLMKIT, "chat", "x", "--route", "ollama/llama3.2"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    deadline = time.monotonic() + HANG_BOUND_S
    while not Path("reached").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG_BOUND_S)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1].startswith("Interrupted.")
    assert not ollama.calls


def test_ctrl_c_does_not_wait_for_a_background_import(ollama: OllamaServer, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)", encoding="utf-8"
    )
    (tmp_path / "litellm.py").write_text("import time; open('reached', 'w').close(); time.sleep(200)", encoding="utf-8")
    command = [*LLMKIT, "chat", "x", "--route", "ollama/llama3.2"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    deadline = time.monotonic() + HANG_BOUND_S
    while not Path("reached").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert (process.returncode, "Traceback" in err) == (130, False)


def test_runs_fit_into_80_columns_and_show_prompt_and_answer(ollama: OllamaServer) -> None:
    run("chat", "What is the capital of Italy, and how many people live there?", "--route", "ollama/llama3.2")
    code, lines = run_in_terminal("runs")
    assert code == 0
    assert max(map(len, lines)) <= COLUMNS
    assert lines[0].split() == ["created", "status", "model", "in", "out", "ms", "prompt", "answer"]
    assert "SUCCEEDED  llama3.2" in lines[1]
    assert "What is" in lines[1]
    assert len([line for line in lines if line.strip()]) == 2


def test_every_help_text_flows(task_file: Path) -> None:
    _, lines = run_in_terminal("eval", "run", "--help")
    text = [line.strip() for line in lines]
    start = next(number for number, line in enumerate(text) if line.startswith("Finished samples"))
    end = text.index("", start)
    # Each line is as long as the next word allows.
    for line, following in zip(text[start:end], text[start + 1 : end], strict=False):
        assert len(line) + 1 + len(following.split()[0]) > COLUMNS - 2


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_a_table_never_breaks_a_word(width: int) -> None:
    from rich.console import Console

    table = make_table("metric", "variant", "baseline", "difference")
    table.add_row("field_match", "ollama/llama3.2", "gemini/gemini-2.5-flash", "+0.1 [-0.3, +0.5]")
    table.add_row("exact", "local/gemma-3-270m", "", "a longer text with several words in it")
    assert isinstance(table, FittingTable)
    console = Console(width=width, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    with console.file:
        console.print(table)
    words = console.export_text().split()
    expected = ["field_match", "ollama/llama3.2", "local/gemma-3-270m", "difference"]
    assert [word for word in expected if width >= len(word) + len("difference  ")] == [
        word for word in expected if word in words and width >= len(word) + len("difference  ")
    ]
    assert max(map(len, console.export_text().splitlines()), default=0) <= width


def test_a_table_in_a_pipe_is_one_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    table = make_table("name", "text")
    table.add_row("a" * 100, "b" * 100)
    print_rich(table)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_evaluations_are_listed(ollama: OllamaServer, task_file: Path) -> None:
    assert "no evaluations yet" in run("eval", "list").stderr
    evaluate(task_file, "first", "--limit", "2")
    evaluate(task_file, "second")
    (newest, oldest) = json.loads(run("eval", "list", "--json").stdout)
    assert (newest["name"], newest["results"], newest["failed"]) == ("second", 4, 0)
    assert (oldest["name"], oldest["results"], oldest["variants"]) == ("first", 2, ["ollama/llama3.2"])
    assert "second  sentiment" in run("eval", "list").stdout


def test_a_chat_is_continued_with_its_earlier_turns(ollama: OllamaServer) -> None:
    route = ["--route", "ollama/llama3.2"]
    assert "no conversation yet" in run("chat", "-c", "x", *route).stderr
    run("chat", "My name is Ada.", "--system", "Be brief.", *route)
    run("chat", "--continue", "What is my name?", *route)
    done = run("chat", "-c", "And now?", *route)
    assert done.returncode == 0
    contents = [message["content"] for message in ollama.calls[-1].json["messages"]]
    answer = '{"label": "positive"}'
    assert contents == ["Be brief.", "My name is Ada.", answer, "What is my name?", answer, "And now?"]


def test_an_evaluation_takes_temperature_seed_and_no_warm_up(ollama: OllamaServer, task_file: Path) -> None:
    evaluate(task_file, "warm", "--temperature", "0.3", "--seed", "7", "--no-warm-up", "--limit", "1")
    (call,) = ollama.calls
    assert (call.json["options"]["temperature"], call.json["options"]["seed"]) == (0.3, 7)


def test_a_wrong_route_is_refused_before_any_hint(ollama: OllamaServer, task_file: Path) -> None:
    for command in ("run", "plan"):
        done = run("eval", command, str(task_file), "--routes", "llama3.2")
        assert done.returncode == 2
        assert "provider/model" in done.stderr
        assert "--name" not in done.stderr
    assert run("eval", "run", str(task_file), "--routes", " , ").returncode == 2


def test_only_answers_that_cost_money_are_called_billed(ollama: OllamaServer) -> None:
    assert "billed" not in run("chat", "x", "--route", "ollama/llama3.2").stderr
    assert "from cache" in run("chat", "x", "--route", "ollama/llama3.2").stderr


def test_an_unrecorded_chat_is_answered(ollama: OllamaServer) -> None:
    done = run("chat", "x", "--route", "ollama/llama3.2", LLM_PERSIST_RUNS="false")
    assert (done.returncode, done.stdout) == (0, '{"label": "positive"}\n')


def test_no_banner_of_another_library_is_printed(
    ollama: OllamaServer, task_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTEST_VERSION", "CI"):
        monkeypatch.delenv(name, raising=False)
    _, lines = run_in_terminal("eval", "run", str(task_file), "--routes", "ollama/llama3.2", "--name", "x")
    assert "pydantic" not in "".join(lines)


def test_an_interrupted_evaluation_keeps_what_it_has(ollama: OllamaServer, task_file: Path) -> None:
    ollama.script([POSITIVE, Fault.hang()])
    command = [
        *LLMKIT,
        "eval",
        "run",
        str(task_file),
        "--routes",
        "ollama/llama3.2",
        "--name",
        "x",
        "--concurrency",
        "1",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=_listen_to_ctrl_c,  # noqa: PLW1509
    )
    assert ollama.wait_until_in_flight(1, HANG_BOUND_S)
    while len(ollama.calls) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(HANG_BOUND_S) == 130
    (listed,) = json.loads(run("eval", "list", "--json").stdout)
    assert listed["results"] >= 1


def _listen_to_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
