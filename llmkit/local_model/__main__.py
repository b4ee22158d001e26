"""The child process: loads the weights, serves them on a loopback port, and ends when its parent does.

It is started by `llmkit.local_model.process` and imports nothing of llmkit, so that it starts fast and works
wherever the parent found its modules. Its order is one JSON line on standard input, which stays open as a leash; its
report is one JSON line on what was its standard output. What it or the runtime prints goes to standard error.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
from typing import Any
from urllib.parse import urlsplit

MAX_LOG_BYTES = 1 << 20
MAX_THREADS = 8
MAX_TOKENS_KEPT_WHOLE = 16_384  # 15 kB each
PARENT_POLL_S = 0.5
PR_SET_PDEATHSIG = 1
WARNINGS_AND_ERRORS = 2  # a log level of llama.cpp; the next one writes a few lines per request

# The model is a base model: it continues text and knows no turns. Several messages become paragraphs, and an answer
# follows its question on the same line, as few-shot examples are commonly written. (A chat template that marks roles
# turns 30 of 30 right answers on easy sentences into 15 of 30.)
CONCATENATING_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ ' ' if message.role == 'assistant' else '\\n\\n' }}{% endif %}"
    "{{ message.content or '' }}"
    "{% endfor %}"
)


def main() -> int:
    """Serve until the parent closes standard input, goes away or sends SIGTERM. Returns the exit code of a failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    _limit_files()
    report_fd = _take_over_stdout()
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    order = json.loads(line)
    _die_with_parent(signal.SIGKILL)
    if os.getppid() != order["parent_pid"]:
        return 0
    try:
        server = _load(order)
    except ImportError as error:
        _report(report_fd, {"import_error": str(error)})
        return 1
    _die_with_parent(0)
    _report(report_fd, {"port": urlsplit(server.listening_address).port})
    _wait_for_end(order["parent_pid"])
    os._exit(0)  # nothing to save, and the destructor of a busy server waits for its answers


def _limit_files() -> None:
    """Limit written files to 1 MiB (the log is the only one; Python ignores SIGXFSZ), and forbid core dumps.

    A core dump would contain prompts.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = MAX_LOG_BYTES if hard == resource.RLIM_INFINITY else min(MAX_LOG_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))


def _take_over_stdout() -> int:
    """Keep standard output for the report, and send what libraries print there to standard error."""
    report_fd = os.dup(1)
    os.dup2(2, 1)
    return report_fd


def _report(report_fd: int, report: dict[str, Any]) -> None:
    os.write(report_fd, json.dumps(report).encode() + b"\n")
    os.close(report_fd)


def _die_with_parent(signal_number: int) -> None:
    """Have the kernel send this signal when the thread that started us ends; 0 for no longer.

    Only for the time of loading, in which the runtime keeps the interpreter's lock for seconds and `_wait_for_end`
    cannot watch: that thread waits for our report, while after it the thread's end does not mean the process's.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


def _load(order: dict[str, Any]) -> Any:
    """Return a server that listens, with the model loaded."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.verbosity = WARNINGS_AND_ERRORS
    params.model.path = order["weights"]
    params.model_alias = {order["model"]}
    params.offline = True
    params.api_keys = [order["api_key"]]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.ui = False
    params.endpoint_slots = False  # shows prompts
    params.chat_template = CONCATENATING_TEMPLATE
    params.n_parallel = order["parallel"]
    params.n_ctx = order["context_tokens"] * order["parallel"]
    params.cache_ram_mib = 0  # by default up to 8 GB of old prompts are kept; each slot keeps its last one anyway
    params.fit_params = False  # loads the model twice to see whether it fits
    params.warmup = False
    # What a prompt shares with the one before it, as examples are, is not read again, for 100 MB at the usual window:
    # most layers look only at the newest 512 tokens, and else nothing of theirs can be used twice.
    params.swa_full = params.n_ctx <= MAX_TOKENS_KEPT_WHOLE
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _count_threads()
    return xllamacpp.Server(params)


def _count_threads() -> int:
    """Return the number of usable processors, at most eight: more do not make a small model faster."""
    available = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(available, MAX_THREADS)


def _wait_for_end(parent_pid: int) -> None:
    """Return when the parent closes the pipe, or has ended while a process that it forked keeps the pipe open."""
    while os.getppid() == parent_pid:
        readable, _, _ = select.select([0], [], [], PARENT_POLL_S)
        if readable and not os.read(0, 1024):
            return


if __name__ == "__main__":
    sys.exit(main())
