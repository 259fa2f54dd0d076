"""What happens inside one evaluation, in a process of its own: read the rows, limit oneself, call the entry, answer.

The calling convention lives here and nowhere else. The entry is called with keyword arguments from the row (`messages`,
`ground_truth`, `tools`, and any further field), only those that its signature takes unless it has `**kwargs`; a
function whose first parameter is no field of the row (`row`, `sample`) gets the row itself. What may be returned is in
`evaluators/returned.py`; a coroutine is awaited. The module's body is run again for every process, so nothing that it
computes is shared, and `random` starts from a seed that only the row decides.
"""

# ruff: noqa: PTH108, PTH120, PTH123 - no pathlib in the template that every evaluation is forked from
from __future__ import annotations

import errno
import gc
import json
import os
import resource
import signal
import sys
import types
from contextlib import suppress
from typing import NoReturn

from evaluators.returned import BadReturn, plain
from evaluators.sandbox.wire import ACKNOWLEDGE, CHANNEL, END_MARK, OUT_OF_MEMORY, ROW

_MESSAGE = 300
_CHUNK = 32 << 10
_OWN_FAILURE = 70  # exit status when this file, not the evaluator, failed
_THREADS = "can't start new thread"
_VARKEYWORDS = 0x08  # CO_VARKEYWORDS


def compile_entry(settings: dict) -> types.CodeType:
    """The entry file as a code object. Raises whatever the compiler raises."""
    path = f"{settings['program']}/{settings['entry'][0]}"
    with open(path, "rb") as file:
        return compile(file.read(), path, "exec", dont_inherit=True)


def try_compile(settings: dict, answer: int) -> None:
    """In a child of its own: compile under the limits, say `ok` or what is wrong, and end."""
    said = "compiling it took too much memory"
    try:
        if not settings["owns_all"]:
            os.setpgid(0, 0)
        _limit(settings["limits"]["whole_cpu_seconds"], nice=0)
        compile_entry(settings)
        said = "ok"
    except MemoryError:
        pass
    except FileNotFoundError:
        said = f"the program has no file {settings['entry'][0]!r}"
    except BaseException as error:  # noqa: BLE001 - whatever it raises is its answer
        said = f"{type(error).__name__}: {error}"[:_MESSAGE]
    os.write(answer, said.encode("utf-8", "replace"))
    os._exit(0)


def main(settings, code, pipes, order) -> NoReturn:
    """One evaluation from reading the rows to the end of the process; never returns."""
    count, size, _, _, cpu, nice, apart, nonce = order
    try:
        pipes, asking = pipes
        (result_in, result), (stdout_in, stdout), (stderr_in, stderr) = pipes
        for handle in (result_in, stdout_in, stderr_in):
            os.close(handle)
        rows = _read(CHANNEL, size, count)
        os.close(CHANNEL)
        os.write(result, ACKNOWLEDGE)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.close(stdout)
        os.close(stderr)
        _limit(cpu, nice)
        if apart:
            os.setsid()  # a session has a share of the processor: the host makes it small, and the supervisor keeps its
        elif not settings["owns_all"]:
            os.setpgid(0, 0)
        if settings["guarded"]:
            install, instructions = settings["guard"]
            install(instructions)
        if settings["mode"] == "code":
            os.close(result)
            _run_as_program(rows)
        else:
            _connect(settings, asking)
            _Scoring(settings, code, result, nonce).run(rows, count)
    finally:
        os._exit(_OWN_FAILURE)


def _connect(settings: dict, asking: tuple) -> None:
    """Give the program its line to the host's broker, `import evaluator_host`; without one that refuses."""
    sys.modules["evaluator_host"] = settings["host"]
    if asking:
        (question_out, question), (answer, answer_in) = asking
        os.close(question_out)
        os.close(answer_in)
        settings["host"].connect(question, answer)


def _read(channel: int, size: int, count: int) -> list[tuple[bytes, int]] | None:
    """The rows, which leave the stream also where there is no memory for them: then None."""
    left = size
    try:
        data = bytearray(size)
        while left:
            left -= _got(channel, memoryview(data)[size - left :])
        return _rows(data, count)
    except MemoryError:
        junk = memoryview(bytearray(_CHUNK))
        while left:
            left -= _got(channel, junk[:left])
        return None


def _got(channel: int, view: memoryview) -> int:
    return os.readv(channel, [view]) or os._exit(0)  # the host went away


def _rows(data: bytearray, count: int) -> list[tuple[bytes, int]]:
    rows, at, view = [], 0, memoryview(data)
    for _ in range(count):
        size, seed = ROW.unpack_from(data, at)
        at += ROW.size
        rows.append((bytes(view[at : at + size]), seed))
        at += size
    return rows


def _limit(cpu: int, nice: int) -> None:
    """Seconds of processor time; the launcher has set the other limits for good."""
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))  # SIGXCPU, and SIGKILL for who ignores it
    if nice:
        os.nice(nice)
        with suppress(OSError):  # gVisor knows no such policy
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # runs when nobody else wants to
    gc.enable()


class _Scoring:
    """Runs the program's rows one after another and writes one line for each, then the end mark."""

    def __init__(self, settings: dict, code, result: int, nonce: bytes) -> None:
        self.settings = settings
        self.code = code
        self.result = result
        self.nonce = nonce
        self.process = os.getpid()

    def run(self, rows: list[tuple[bytes, int]] | None, count: int) -> None:
        entry, problem = None, None
        try:
            if rows is None:
                raise MemoryError
            _seed(0)
            entry = _entry(self.settings, self.code)
        except BaseException as error:  # noqa: BLE001 - whatever it raises is its answer
            problem = _told(error, loading=True)
            error = None
        for place, (text, seed) in enumerate(rows or [(b"", 0)] * count):
            self._write(place, *(problem or self._score(entry, text, seed)))
        self._send(self.nonce + END_MARK)
        os._exit(0)

    def _score(self, entry, text: bytes, seed: int) -> tuple[str, object]:
        try:
            row = json.loads(text)
            _seed(seed)
            returned = call(entry, row)
            value = plain(returned)
            _flush()
            return "ok", value
        except BadReturn as error:
            return "bad_result", {"message": _text(error)}
        except BaseException as error:  # noqa: BLE001 - whatever it raises is its answer
            return _told(error)

    def _write(self, place: int, status: str, value: object) -> None:
        try:
            text = json.dumps(value, separators=(",", ":")).encode()
        except MemoryError:
            status, text = "oom", b"{}"
        except RecursionError:
            status, text = "bad_result", b'{"message":"the result refers to itself or is nested too deep"}'
        except BaseException as error:  # noqa: BLE001 - what is in it may raise anything
            status, text = "bad_result", json.dumps({"message": f"not JSON: {_text(error)}"[:_MESSAGE]}).encode()
        if len(text) > self.settings["limits"]["result_bytes"]:
            status, text = "result_flood", b"{}"
        self._send(b"%s %d %s %s\n" % (self.nonce, place, status.encode(), text))

    def _send(self, line: bytes) -> None:
        if os.getpid() != self.process:
            os._exit(0)  # a fork of the evaluator's ran on into our code; only the first process answers
        view = memoryview(line)
        while view:
            view = view[os.write(self.result, view) :]


def _told(error: BaseException, *, loading: bool = False) -> tuple[str, dict]:
    """An exception as a status and its details; the traceback's frames are let go first."""
    BaseException.with_traceback(error, None)
    own = type(error)  # which no `__class__` of its own can belie
    if issubclass(own, MemoryError):
        gc.collect()
        return "oom", {}
    kind, message = _clean(vars(type)["__name__"].__get__(own)), _text(error)
    found = {"type": kind[:100], "message": f"{kind}: {message}"[:_MESSAGE]}
    number = vars(OSError)["errno"].__get__(error) if issubclass(own, OSError) else None
    number = number if type(number) is int else 0
    if number == errno.EAGAIN or (issubclass(own, RuntimeError) and message.startswith(_THREADS)):
        return "pids", found
    if number == errno.ENOMEM:
        return "oom", found
    return "load_error" if loading else "error", found


def _text(error: BaseException) -> str:
    try:
        return _clean(str(error))
    except BaseException:  # noqa: BLE001 - its own __str__ may raise anything
        return "(its text could not be made)"


def _clean(text: str) -> str:
    """As a text of nobody's own class, without halves of surrogate pairs, which no result may hold."""
    return str.encode(text, "utf-8", "backslashreplace")[: 4 * _MESSAGE].decode("utf-8", "ignore")


def _entry(settings: dict, code):
    """Run the module's body in fresh globals and find the entry function in it."""
    _prepare(settings)
    path, function = settings["entry"]
    name = path.removesuffix(".py").replace("/", ".")
    package = name.rpartition(".")[0]
    if package:
        __import__(package)
    module = types.ModuleType(name)
    module.__file__ = f"{settings['program']}/{path}"
    module.__package__ = package
    sys.modules[name] = module
    exec(code, module.__dict__)  # noqa: S102 - this is the jail
    for library in settings["seeded"]:  # imported in a function: before the row's seed is set, not after
        with suppress(ImportError):
            __import__(library)
    found = module
    for part in function.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise LookupError(f"{path} has no function {function!r}")
    return found


def _prepare(settings: dict) -> None:
    folder = os.path.dirname(f"{settings['program']}/{settings['entry'][0]}")
    sys.path[:0] = dict.fromkeys((folder, settings["program"]))
    if settings["environment"]:
        os.environ.update(settings["environment"])
    sys.path[len(sys.path) :] = [path for path in settings["environment"].get("PYTHONPATH", "").split(":") if path]
    if settings["packages"]:
        import site  # noqa: PLC0415 - only where there are packages; it runs their .pth files

        for folder in settings["packages"]:
            site.addsitedir(folder)


def call(entry, row):
    """`entry` with the row's fields as its signature wants them; a coroutine is run to its end."""
    arguments, keywords = _arguments(entry, row)
    returned = entry(*arguments, **keywords)
    if hasattr(returned, "__await__"):
        import asyncio  # noqa: PLC0415 - heavy; only for coroutines

        async def awaited():
            return await returned

        return asyncio.run(awaited())
    return returned


def _arguments(entry, row) -> tuple[tuple, dict]:
    positional, keyword_only, required, open_ended = _signature(entry)
    if not isinstance(row, dict):
        return (row,), {}
    fields = {name: value for name, value in row.items() if name.isidentifier()}
    missing = [name for name in required if name not in fields]
    if positional and missing[:1] == positional[:1]:  # `row`, or whatever its author calls it
        fields.pop(positional[0], None)
        rest = fields if open_ended else {n: fields[n] for n in (*positional[1:], *keyword_only) if n in fields}
        return (row,), rest
    if open_ended:
        return (), fields
    return (), {name: fields[name] for name in (*positional, *keyword_only) if name in fields}


def _signature(entry) -> tuple[list[str], list[str], list[str], bool]:
    """Positional names, keyword-only names, positional names without a default, and whether it takes any keyword."""
    inner = entry
    while hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    if not isinstance(inner, types.FunctionType):
        return _inspected(inner)
    code = inner.__code__
    positional = list(code.co_varnames[: code.co_argcount])
    keyword_only = list(code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount])
    required = positional[: len(positional) - len(inner.__defaults__ or ())]
    return positional, keyword_only, required, bool(code.co_flags & _VARKEYWORDS)


def _inspected(entry) -> tuple[list[str], list[str], list[str], bool]:
    import inspect  # noqa: PLC0415 - heavy; only for what is no plain function

    parameters = list(inspect.signature(entry).parameters.values())
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    keyword_only = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
    required = [one.name for one in positional if one.default is one.empty]
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters)
    return [one.name for one in positional], keyword_only, required, open_ended


def _seed(seed: int) -> None:
    """The row decides what is random, whatever ran before and wherever; only generators that are loaded."""
    if "random" in sys.modules:
        sys.modules["random"].seed(seed)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(seed & 0xFFFFFFFF)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def _run_as_program(rows: list[tuple[bytes, int]] | None) -> None:
    """Code that a model wrote: a program with standard input, and nothing of its judge in this process."""
    if rows is None:
        os._exit(OUT_OF_MEMORY)
    source, stdin = (text.decode() for text, _ in rows)
    _feed(stdin)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["answer.py"]
    status = 0
    try:
        exec(compile(source, "answer.py", "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - this is the jail
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except MemoryError:
        status = OUT_OF_MEMORY
    except BaseException as error:  # noqa: BLE001 - whatever it raises is its answer
        status = 1
        traceback = error.__traceback__ and error.__traceback__.tb_next  # without the line above
        sys.excepthook(type(error), error.with_traceback(traceback), traceback)
    _flush()
    os._exit(status & 0xFF)


def _feed(text: str) -> None:
    """Standard input from a scratch file that has no name."""
    path = "stdin.txt"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(path)
    view = memoryview(text.encode())
    while view:
        view = view[os.write(handle, view) :]
    os.lseek(handle, 0, os.SEEK_SET)
    os.dup2(handle, 0)
    os.close(handle)
