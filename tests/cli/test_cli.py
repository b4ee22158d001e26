"""The command line as people run it: exit codes, stdout and stderr apart.

What takes no more than a call is run in this process, by the same door; where a process or a signal matters, in one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmkit
from llmkit.cli import main
from llmkit.testing import Fault, GeminiServer, OllamaServer, Reply, get_refused_url
from tests.support.command_server import CommandServer

LLMKIT = [sys.executable, "-m", "llmkit"]
TASK = """
from typing import Literal
from pydantic import BaseModel
from llmkit.evals import Sample, Task, field_match

class Sentiment(BaseModel):
    label: Literal["positive", "negative"]

task = Task(
    name="sentiment",
    dataset="sentiment.jsonl",     # beside this file; or a list of Sample, a DataFrame, CSV, Parquet
    prompt="Text: {input}\\nSentiment:",   # or a function from a Sample to messages
    output_type=Sentiment,
    scorers=[field_match("label")],
)
"""
POSITIVE = '{"label": "positive"}'


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[OllamaServer, GeminiServer]]:
    with OllamaServer([Reply(POSITIVE)]) as ollama, GeminiServer([Reply(POSITIVE)], api_key="key") as gemini:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", ollama.url)
        monkeypatch.setenv("LLM_GEMINI_API_BASE", f"{gemini.url}/v1beta")
        monkeypatch.setenv("LLM_GEMINI_API_KEY", "key")
        monkeypatch.setenv("LLM_MAX_RETRIES", "0")
        yield ollama, gemini


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    lines = [{"input": f"text {n}", "target": "positive" if n % 2 else "negative"} for n in range(10)]
    (tmp_path / "sentiment.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    path = tmp_path / "sentiment.py"
    path.write_text(TASK, encoding="utf-8")
    return path


def run_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, which takes seconds to import what it needs."""
    return subprocess.run(
        [*LLMKIT, *arguments], capture_output=True, text=True, timeout=250, check=False, env=os.environ | environment
    )


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in this process, by the door that `llmkit` and `python -m llmkit` go through."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["llmkit", *arguments])
        patch.setattr(sys, "stdin", io.StringIO())
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
    return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), out.getvalue(), err.getvalue())


@pytest.mark.parametrize(
    "command",
    [[], ["doctor"], ["chat"], ["runs"], ["eval"], ["eval", "run"], ["eval", "gate"], ["db"], ["db", "upgrade"]],
)
def test_every_command_has_help_worth_reading(command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert len(done.stdout) > 200


def test_chat_prints_the_answer_alone_on_stdout(servers: tuple[OllamaServer, GeminiServer]) -> None:
    servers[0].script([Reply("Rome", input_tokens=5, output_tokens=1)])
    done = run_process("chat", "Capital of Italy?", "--route", "ollama/llama3.2")
    assert (done.returncode, done.stdout) == (0, "Rome\n")
    assert "5 + 1 tokens" in done.stderr
    again = json.loads(run("chat", "Capital of Italy?", "--route", "ollama/llama3.2", "--json").stdout)
    assert (again["text"], again["served_from"]) == ("Rome", "cache")


def test_an_answer_steers_no_terminal_and_a_pipe_gets_it_whole(servers: tuple[OllamaServer, GeminiServer]) -> None:
    servers[0].script("\x1b]0;title\x07\x1b[2Jx")
    chat = ["chat", "x", "--route", "ollama/llama3.2"]
    assert run_process(*chat).stdout == "\x1b]0;title\x07\x1b[2Jx\n"
    ours, theirs = os.openpty()
    try:
        subprocess.run([*LLMKIT, *chat], stdout=theirs, stderr=subprocess.DEVNULL, check=True, timeout=250)
        assert os.read(ours, 1_000) == rb"\x1b]0;title\x07\x1b[2Jx" + b"\r\n"
    finally:
        os.close(theirs)
        os.close(ours)


def test_runs_lists_calls_as_a_table_and_as_json(servers: tuple[OllamaServer, GeminiServer]) -> None:
    run("chat", "x", "--route", "gemini/gemini-2.5-flash")
    (row,) = json.loads(run("runs", "--json").stdout)
    assert (row["status"], row["provider"]) == ("SUCCEEDED", "gemini")
    assert "SUCCEEDED" in run("runs").stdout


def test_the_command_line_of_the_specification_compares_two_routes(
    servers: tuple[OllamaServer, GeminiServer], task_file: Path
) -> None:
    """As a process of its own it is in `test_docs.py`."""
    options = ["--routes", "ollama/llama3.2,gemini/gemini-2.5-flash", "--name", "first"]
    done = run("eval", "run", str(task_file), *options)
    assert done.returncode == 0, done.stderr
    assert "ollama/llama3.2" in done.stdout
    assert "gemini/gemini-2.5-flash" in done.stdout
    assert [len(server.calls) for server in servers] == [10, 10]
    again = run("eval", "run", str(task_file), *options, "--json")
    assert again.returncode == 0
    json.loads(again.stdout)
    assert [len(server.calls) for server in servers] == [10, 10]


NOISY_TASK = """
import os, subprocess, sys
from pydantic import BaseModel
from llmkit.evals import Sample, Task

print("imported")
original = sys.stdout

class Answer(BaseModel):
    label: str

def noisy(output, sample):
    print("print")
    original.write("reference")
    sys.__stdout__.write("original")
    os.write(1, b"descriptor")
    subprocess.run([sys.executable, "-c", "print('child')"], check=True)
    os.chdir(os.sep)
    return 1

def prompt(sample):
    print("prompt")
    return sample.input

task = Task("noisy", [Sample("a")], prompt, Answer, [noisy])
"""


def test_json_is_all_of_stdout_whatever_a_scorer_prints(
    servers: tuple[OllamaServer, GeminiServer], tmp_path: Path
) -> None:
    file = tmp_path / "noisy.py"
    file.write_text(NOISY_TASK, encoding="utf-8")
    done = run_process("eval", "run", str(file), "--routes", "ollama/llama3.2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["summary"]
    noise = ("imported", "print", "reference", "original", "descriptor", "child")
    assert [word for word in noise if word not in done.stderr] == []


QUIETER_TASK = """
from pydantic import BaseModel
from llmkit.evals import Sample, Task

print("imported")

class Answer(BaseModel):
    label: str

def noisy(output, sample):
    print("scored")
    return 1

task = Task("noisy", [Sample("a")], "{input}", Answer, [noisy])
"""


def test_json_is_all_of_stdout_whatever_a_task_file_prints(
    servers: tuple[OllamaServer, GeminiServer], tmp_path: Path
) -> None:
    file = tmp_path / "noisy.py"
    file.write_text(QUIETER_TASK, encoding="utf-8")
    for command in (
        ["run", str(file), "--routes", "ollama/llama3.2", "--name", "n"],
        ["report", "n", "--task", str(file)],
        ["plan", str(file), "--routes", "ollama/llama3.2"],
    ):
        done = run("eval", *command, "--json")
        assert isinstance(json.loads(done.stdout), dict), done.stderr
        assert "imported" in done.stderr


def test_files_are_written_where_they_were_wanted_when_the_folder_changes(
    servers: tuple[OllamaServer, GeminiServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "moving.py"
    file.write_text(NOISY_TASK, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    files = {"--html": "r.html", "--junit": "r.xml", "--markdown": "r.md"}
    options = [part for pair in files.items() for part in pair]
    done = run_process("eval", "run", str(file), "--routes", "ollama/llama3.2", *options)
    assert done.returncode == 0, done.stderr
    assert {name for name in files.values() if not (tmp_path / name).stat().st_size} == set()


def test_limit_epochs_and_concurrency_are_taken(servers: tuple[OllamaServer, GeminiServer], task_file: Path) -> None:
    command = ["eval", "run", str(task_file), "--routes", "ollama/llama3.2", "--name", "n"]
    done = run(*command, "--limit", "3", "--epochs", "2", "--concurrency", "1")
    assert done.returncode == 0, done.stderr
    assert len(servers[0].calls) == 6
    assert servers[0].max_in_flight == 1


def test_failed_samples_exit_with_1_and_the_same_command_tries_them_again(
    servers: tuple[OllamaServer, GeminiServer], task_file: Path
) -> None:
    servers[0].script([Reply(POSITIVE)] * 3 + [Fault.status(500)] * 2 + [Reply(POSITIVE)])
    command = ["eval", "run", str(task_file), "--routes", "ollama/llama3.2", "--name", "n", "--concurrency", "1"]
    assert run(*command).returncode == 1
    sent = len(servers[0].calls)
    assert run(*command).returncode == 0
    assert len(servers[0].calls) == sent + 2


@pytest.mark.parametrize("routes", ["olama/llama3.2", "policy:fats", "ollama/llama3.2,ollama/llama3.2"])
def test_routes_are_refused_before_a_name_is_suggested(task_file: Path, routes: str) -> None:
    done = run("eval", "run", str(task_file), "--routes", routes)
    assert done.returncode == 2
    assert "--name" not in done.stderr


def test_options_are_refused_before_a_name_is_suggested(task_file: Path) -> None:
    done = run("eval", "run", str(task_file), "--routes", "ollama/llama3.2", "--workers", "0")
    assert done.returncode == 2
    assert "--name" not in done.stderr


def _bad_inputs(task_file: Path) -> dict[str, tuple[list[str], dict[str, str], int, str]]:
    folder = task_file.parent
    (folder / "bad.jsonl").write_text('{"input": "a", "target": "positive"}\n{"input": \n', encoding="utf-8")
    (folder / "bad_line.py").write_text(TASK.replace("sentiment.jsonl", "bad.jsonl"), encoding="utf-8")
    (folder / "bad_type.py").write_text(TASK.replace("output_type=Sentiment", "output_type=object()"), encoding="utf-8")
    (folder / "syntax.py").write_text("task = (\n", encoding="utf-8")
    (folder / "garbage.db").write_bytes(b"this is not a database file at all " * 100)
    run_it = ["eval", "run", str(task_file), "--name", "n", "--routes"]
    on_ollama = ["--name", "n", "--routes", "ollama/llama3.2"]
    chat = ["chat", "x", "--route"]
    return {
        "no server": ([*chat, "ollama/llama3.2"], {"LLM_OLLAMA_API_BASE": get_refused_url()}, 1, "ollama serve"),
        "wrong key": ([*chat, "gemini/gemini-2.5-flash"], {"LLM_GEMINI_API_KEY": "wrong"}, 1, "LLM_GEMINI_API_KEY"),
        "no key": ([*chat, "gemini/gemini-2.5-flash"], {"LLM_GEMINI_API_KEY": ""}, 2, "LLM_GEMINI_API_KEY"),
        "unknown model": ([*chat, "ollama/missing"], {}, 1, "ollama pull missing"),
        "unknown provider": ([*chat, "gemni/gpt"], {}, 2, "did you mean gemini?"),
        "unknown route": (
            [*run_it, "ollama/llama3.2,foo/bar"],
            {},
            2,
            "unknown endpoint 'foo'; known: ollama, gemini, local",
        ),
        "bad line": (["eval", "run", str(folder / "bad_line.py"), *on_ollama], {}, 2, "bad.jsonl"),
        "bad type": (["eval", "run", str(folder / "bad_type.py"), *on_ollama], {}, 2, "output_type"),
        "no file": (["eval", "run", "missing.py", *on_ollama], {}, 2, "missing.py"),
        "syntax": (["eval", "run", str(folder / "syntax.py"), *on_ollama], {}, 2, "syntax.py"),
        "corrupt database": (["runs"], {"LLM_DATABASE_URL": f"sqlite:///{folder}/garbage.db"}, 2, "garbage.db"),
        "no folder": (["runs"], {"LLM_DATABASE_URL": "sqlite:///no/such/folder/x.db"}, 2, "no/such/folder"),
        "bad setting": (["runs"], {"LLM_CONCURRENCY_LIMIT": "many"}, 2, "LLM_CONCURRENCY_LIMIT"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "no server",
        "wrong key",
        "no key",
        "unknown model",
        "unknown provider",
        "unknown route",
        "bad line",
        "bad type",
        "no file",
        "syntax",
        "corrupt database",
        "no folder",
        "bad setting",
    ],
)
def test_bad_input_is_one_readable_message_and_no_traceback(
    servers: tuple[OllamaServer, GeminiServer], task_file: Path, case: str
) -> None:
    arguments, environment, code, said = _bad_inputs(task_file)[case]
    done = run(*arguments, **environment)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 8, done.stderr


def test_a_bad_dataset_line_is_named_by_file_and_number(
    servers: tuple[OllamaServer, GeminiServer], task_file: Path
) -> None:
    arguments, *_ = _bad_inputs(task_file)["bad line"]
    assert "bad.jsonl, line 2" in run(*arguments).stderr or "bad.jsonl:2" in run(*arguments).stderr


def test_debug_shows_the_traceback(servers: tuple[OllamaServer, GeminiServer]) -> None:
    arguments = ("chat", "x", "--route", "ollama/missing")
    assert "Traceback" in run("--debug", *arguments).stderr
    assert "Traceback" not in run(*arguments).stderr


def _wait_for_calls(server: OllamaServer, count: int) -> None:
    """When the last two hang, what came before is done: of two places none is free before its answer is recorded."""
    deadline = time.monotonic() + 200
    while len(server.calls) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.wait_until_in_flight(2, 60)


@pytest.mark.slow
def test_ctrl_c_in_an_evaluation_exits_cleanly_and_the_next_run_continues(
    servers: tuple[OllamaServer, GeminiServer], task_file: Path
) -> None:
    servers[0].script([Reply(POSITIVE)] * 4 + [Fault.hang()])
    command = ["eval", "run", str(task_file), "--routes", "ollama/llama3.2", "--name", "n", "--concurrency", "2"]
    process = subprocess.Popen([*LLMKIT, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _wait_for_calls(servers[0], 6)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "run the same command again to continue" in stderr
    sent = len(servers[0].calls)
    servers[0].script([Reply(POSITIVE)])
    assert run(*command).returncode == 0
    assert len(servers[0].calls) == sent + 6


@pytest.mark.slow
def test_kill_9_in_an_evaluation_loses_nothing_and_repeats_only_what_was_in_flight(
    servers: tuple[OllamaServer, GeminiServer], task_file: Path
) -> None:
    servers[0].script([Reply(POSITIVE)] * 5 + [Fault.hang()])
    command = ["eval", "run", str(task_file), "--routes", "ollama/llama3.2", "--name", "n", "--concurrency", "2"]
    process = subprocess.Popen([*LLMKIT, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _wait_for_calls(servers[0], 7)
    process.kill()
    process.wait()
    sent = len(servers[0].calls)
    servers[0].script([Reply(POSITIVE)])
    done = run(*command, "--json")
    assert done.returncode == 0, done.stderr
    assert len(servers[0].calls) == sent + 5
    report = json.loads(done.stdout)
    assert report["counts"]["SUCCEEDED"] == 10
    assert report["work"]["reused"] == 5
    assert len(report["in_doubt"]) == 2


def test_doctor_says_what_mends_what(servers: tuple[OllamaServer, GeminiServer]) -> None:
    report = json.loads(run("doctor", "--json").stdout)
    assert report["healthy"]
    assert "ollama/llama3.2" in report["usable_routes"]
    states = {
        check["name"]: check for check in json.loads(run("doctor", "--json", LLM_OLLAMA_MODEL="other").stdout)["checks"]
    }
    assert states["ollama"]["fix"] == "ollama pull other"
    assert "key" not in states["gemini"]["detail"].replace("key is set", "")


def test_db_upgrade_makes_a_new_database(tmp_path: Path) -> None:
    done = run("db", "upgrade", LLM_DATABASE_URL=f"sqlite:///{tmp_path}/new.db")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new.db").exists()
    assert "was at new" in done.stderr
    assert "already" in run("db", "upgrade", LLM_DATABASE_URL=f"sqlite:///{tmp_path}/new.db").stderr


def test_the_installed_command_exists() -> None:
    assert shutil.which("llmkit", path=str(Path(sys.executable).parent))


def chat_process(
    server: CommandServer, *arguments: str, stdin: str | None = None, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[bytes]:
    """Run `llmkit chat` with real pipes."""
    return subprocess.run(
        [server.folder / "llmkit", "chat", *arguments, "--route", "ollama/llama3.2"],
        input=(stdin or "").encode(),
        capture_output=True,
        timeout=250,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "gbk", "cp850"])
def test_an_answer_is_printed_in_every_encoding(
    servers: tuple[OllamaServer, GeminiServer], command_server: CommandServer, encoding: str
) -> None:
    """Characters that the encoding lacks are escaped: the answer was paid for."""
    servers[0].script(Reply("Warm → sunny ✓ 🙂"))
    done = chat_process(command_server, "hi", encoding=encoding)
    assert (done.returncode, b"Warm" in done.stdout, b"\\U0001f642" in done.stdout) == (0, True, True)


def test_a_warning_is_one_line_without_a_place_in_the_code(
    servers: tuple[OllamaServer, GeminiServer], recwarn: pytest.WarningsRecorder
) -> None:
    done = run("chat", "hello", LLM_OLLAMA_API_BASE=get_refused_url())
    assert "\nwarning: gemini" in f"\n{done.stderr}"
    assert ".py:" not in done.stderr
    assert not recwarn.list


def test_chat_puts_piped_text_before_the_prompt(
    servers: tuple[OllamaServer, GeminiServer], command_server: CommandServer
) -> None:
    assert chat_process(command_server, "Summarise this.", stdin="A long text.").returncode == 0
    assert servers[0].calls[-1].json["messages"][-1]["content"] == "A long text.\n\nSummarise this."


def test_chat_reads_its_prompt_from_a_pipe(
    servers: tuple[OllamaServer, GeminiServer], command_server: CommandServer
) -> None:
    assert chat_process(command_server, stdin="Hello").returncode == 0
    assert servers[0].calls[-1].json["messages"][-1]["content"] == "Hello"


def test_chat_without_a_prompt_is_refused(servers: tuple[OllamaServer, GeminiServer]) -> None:
    done = run("chat")
    assert (done.returncode, "There is no prompt" in done.stderr, servers[0].call_count) == (2, True, 0)


def test_chat_passes_its_sampling_options(servers: tuple[OllamaServer, GeminiServer]) -> None:
    options = ("--temperature", "0.5", "--seed", "3", "--stop", "END\\n", "--max-output-tokens", "9")
    assert run("chat", "hi", "--route", "ollama/llama3.2", *options).returncode == 0
    sent = servers[0].calls[-1].json["options"]
    assert {name: sent[name] for name in ("temperature", "seed", "stop", "num_predict")} == {
        "temperature": 0.5,
        "seed": 3,
        "stop": ["END\n"],
        "num_predict": 9,
    }


def test_version_and_short_help_are_known() -> None:
    assert run("--version").stdout == f"llmkit {llmkit.__version__}\n"
    assert "Usage" in run("-h").stdout


def test_runs_shows_every_field_of_one_run(servers: tuple[OllamaServer, GeminiServer]) -> None:
    run("chat", "hi", "--route", "ollama/llama3.2")
    (row,) = json.loads(run("runs", "--json").stdout)
    shown = run("runs", "--show", row["id"]).stdout
    assert all(name in shown for name in ("prompt_sha256", "latency_ms", row["id"]))


def test_runs_refuses_an_unknown_id(servers: tuple[OllamaServer, GeminiServer]) -> None:
    done = run("runs", "--show", "nothing")
    assert (done.returncode, "0 runs have an id" in done.stderr) == (2, True)


def test_tables_do_not_carry_control_sequences(
    servers: tuple[OllamaServer, GeminiServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server chooses the name of its model, and a terminal would obey an escape in it."""
    servers[0].version = "0.6.5\x1b]0;stolen title\x07"
    shown = run("doctor").stdout
    assert ("stolen title" in shown, "\x1b]" in shown, "\x07" in shown) == (True, False, False)
