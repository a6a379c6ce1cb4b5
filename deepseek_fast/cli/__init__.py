"""The command `deepseek-fast`: one file per subcommand, each with `add(subparsers)` and `run(arguments) -> exit code`.

Exit codes: 0 ok, 1 a check failed, 2 the user's mistake, 3 the machine's problem. Mistakes are one sentence on stderr.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

OK, CHECK_FAILED, USER_MISTAKE, MACHINE_PROBLEM, INTERRUPTED = 0, 1, 2, 3, 130
USER_MISTAKES = (
    *(ValueError, TypeError),
    *(FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError),
)
MACHINE_PROBLEMS = (RuntimeError, ImportError, OSError, MemoryError)
# Their exceptions have no common base; what they refuse is the user's model.
MODEL_READERS = ("onnx", "onnxruntime", "google.protobuf")
SENTENCE_LIMIT = 600  # characters


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USER_MISTAKE, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    # Here, because the commands import deepseek_fast.bench, which imports this package's machine and output.
    from deepseek_fast.cli import bench, demo, doctor, fp8_convert, optimize, verify

    parser = _Parser(prog="deepseek-fast", description="Smaller, faster models with the same numbers everywhere.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (optimize, verify, fp8_convert, bench, doctor, demo):
        command.add(subparsers)
    arguments = parser.parse_args(argv)
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return _say(arguments.command, "interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone: `deepseek-fast ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if os.environ.get("DSF_TRACEBACK"):
            traceback.print_exc()
        code = _code(error)
        if code is None:
            traceback.print_exc()
            return _say(arguments.command, "internal error; please report it with the lines above", MACHINE_PROBLEM)
        return _say(arguments.command, sentence(error), code)


def sentence(error: Exception) -> str:
    """An exception's message as one line of at most SENTENCE_LIMIT characters."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= SENTENCE_LIMIT else text[: SENTENCE_LIMIT - 3] + "..."


def _code(error: Exception) -> int | None:
    if isinstance(error, USER_MISTAKES) or type(error).__module__.startswith(MODEL_READERS):
        return USER_MISTAKE
    return MACHINE_PROBLEM if isinstance(error, MACHINE_PROBLEMS) else None


def _say(command: str, text: str, code: int) -> int:
    for said in (command, command.replace("-", "_")):  # the operation in Python's spelling
        text = text.removeprefix(f"{said}: ")
    print(f"deepseek-fast {command}: {text}", file=sys.stderr)
    return code
