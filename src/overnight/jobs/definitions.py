"""Job functions by name. A job's row names its function by `code_ref`, so that any worker finds it."""

import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, get_type_hints

import msgspec

from overnight.domain import BadInput
from overnight.domain.claim_rules import ClaimRule, claim_rules

from .child_jobs import ChildCode, run_child
from .encoding import encode
from .execution import in_job

P = ParamSpec("P")
T = TypeVar("T")


_defined: "dict[str, JobFunction[..., Any]]" = {}
"""The job functions of this process by reference: a script that runs its own job is not loaded a second time."""


class JobFunction(Generic[P, T]):
    """An async function that runs as a job. Called inside another job, it runs as a child job."""

    def __init__(
        self, function: Callable[P, Awaitable[T]], name: str, agent: str | None, claims: Sequence[ClaimRule] = ()
    ) -> None:
        if not inspect.iscoroutinefunction(function):
            raise BadInput(f"@job {function.__qualname__}: a job is an async function; write `async def`")
        functools.update_wrapper(self, function)
        self.function, self.name, self.agent, self.claims = function, name, agent, tuple(claims)
        self.code_ref = _reference(function)
        _defined[self.code_ref] = self
        self.code_fingerprint = _fingerprint(function)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        execution, scope = in_job(f"calling job {self.name}")
        payload = input_of(self, args, kwargs)
        code = ChildCode(self.name, self.code_ref, self.agent, self.function)
        return await run_child(execution, scope, code, payload)

    def body(self, payload: bytes | None) -> Callable[[], Coroutine[Any, Any, Any]]:
        """The coroutine function of one run. `payload`: its input as JSON."""
        function: Any = self.function
        args, kwargs = arguments_of(function, payload)
        return lambda: function(*args, **kwargs)


def _reference(function: Callable[..., Any]) -> str:
    module = function.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        module = spec.name if spec is not None else str(Path(getattr(main, "__file__", "__main__")).resolve())
    return f"{module}:{function.__qualname__}"


def _fingerprint(function: Callable[..., Any]) -> str:
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        source = function.__qualname__
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def job(
    function: Callable[P, Awaitable[T]] | None = None,
    *,
    name: str | None = None,
    agent: str | None = None,
    assert_effects: Sequence[Mapping[str, str]] = (),
) -> Any:
    """Make an async function a durable job.

    - `name`: its display name; default: the function's name. `agent`: the agent it is billed to.
    - `assert_effects`: rules of `{"text": pattern, "tool": name}`. The receipt says of each match in the result whether a
      committed effect of the tool has the arguments that the named groups say.

    Raises BadInput for a function that is not async, or an invalid rule.
    """
    claims = claim_rules([dict(each) for each in assert_effects], "assert_effects")

    def wrap(inner: Callable[P, Awaitable[T]]) -> JobFunction[P, T]:
        return JobFunction(inner, name or inner.__name__, agent, claims)

    return wrap(function) if function is not None else wrap


def input_of(function: JobFunction[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The arguments as the JSON input of a job. Raises BadInput if they do not fit the function or have no JSON form."""
    try:
        inspect.signature(function.function).bind(*args, **kwargs)
    except TypeError as error:
        raise BadInput(f"job {function.name}: {error}") from None
    payload = encode({"args": list(args), "kwargs": kwargs}, f"the input of job {function.name}")
    _check_types(function, payload)
    return payload


def _check_types(function: JobFunction[..., Any], payload: bytes) -> None:
    """Raise BadInput for values that the annotations cannot take, before anything is written."""
    hints, names = _annotations(function.function)
    data = msgspec.json.decode(payload)
    given = [*zip(names, data["args"], strict=False), *data["kwargs"].items()]
    for name, value in given:
        try:
            msgspec.convert(value, hints.get(name, Any))
        except msgspec.ValidationError as error:
            raise BadInput(f"job {function.name}, argument {name}: {error}") from None
        except (TypeError, NotImplementedError):
            continue  # a type that msgspec does not know: the value is passed as JSON has it


def _annotations(function: Callable[..., Any]) -> tuple[dict[str, Any], list[str]]:
    """The annotated types, and the names of the parameters that take one value by position."""
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):
        hints = {}
    each = inspect.signature(function).parameters.items()
    return hints, [name for name, parameter in each if parameter.kind != parameter.VAR_POSITIONAL]


def arguments_of(function: Callable[..., Any], payload: bytes | None) -> tuple[list[Any], dict[str, Any]]:
    """Decode the arguments, converted to the annotated types where msgspec knows them."""
    data = msgspec.json.decode(payload or b"{}")
    args, kwargs = list(data.get("args", [])), dict(data.get("kwargs", {}))
    hints, names = _annotations(function)
    args = [_convert(value, hints.get(name, Any)) for name, value in zip_longest(names[: len(args)], args)]
    return args, {key: _convert(value, hints.get(key, Any)) for key, value in kwargs.items()}


def converted(function: Callable[..., Any], named: dict[str, Any]) -> dict[str, Any]:
    """Recorded arguments, converted to the annotated types where msgspec knows them."""
    hints, _ = _annotations(function)
    return {name: _convert(value, hints.get(name, Any)) for name, value in named.items()}


def _convert(value: Any, hint: Any) -> Any:
    try:
        return msgspec.convert(value, hint)
    except (msgspec.ValidationError, TypeError, NotImplementedError):
        return value


def load_job(reference: str) -> JobFunction[..., Any]:
    """Import the job function `package.module:name` or `path/to/file.py:name`. Raises BadInput if there is none."""
    if reference in _defined:
        return _defined[reference]
    module_name, _, attribute = reference.rpartition(":")
    if not module_name:
        raise BadInput(f"{reference!r}: name a job as module:function or path/to/file.py:function")
    try:
        module = _load_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise BadInput(f"{reference}: {error}. Start in the folder of the module, or add it to PYTHONPATH") from None
    found: Any = module
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not isinstance(found, JobFunction):
        jobs = sorted(name for name, value in vars(module).items() if isinstance(value, JobFunction))
        raise BadInput(f"{reference}: no @job of that name; {module_name} has {', '.join(jobs) or 'none'}")
    return found  # pyright: ignore[reportUnknownVariableType]


def add_folder(folder: str) -> None:
    """Let job modules be imported from a folder.

    It is searched last: none of its files may replace an installed package that this program imports later.
    """
    if folder not in sys.path:
        sys.path.append(folder)


def _load_file(path: Path) -> Any:
    path = path.resolve()
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    name = f"overnight_job_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    add_folder(str(path.parent))
    spec.loader.exec_module(module)
    for value in vars(module).values():
        if isinstance(value, JobFunction) and value.code_ref.startswith(name):
            value.code_ref = f"{path}:{value.function.__qualname__}"
            _defined[value.code_ref] = value
    return module
