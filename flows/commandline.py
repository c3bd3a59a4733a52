"""A flow's signature, form and command line, derived from its parameter model in `tasks.parameters`.

`parameters` gives a flow function the signature and the docstring that Prefect makes its form from; `run` is the
command line: one clear line and exit code 2 for what cannot be started, 1 for what failed, 130 after Ctrl-C, 0 for what
completed. What else a terminal shows is in `flows.terminal`.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.util import find_spec
from types import NoneType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, cast, get_args, get_origin

from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.runtime import flow_run
from prefect.states import Crashed
from pydantic import Field, GetJsonSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema

from flows.terminal import INTERRUPTED, Interrupts, tidy_screen, without_traceback
from tasks.aws.block import credentials_of
from tasks.errors import ShardlineError
from tasks.naming import split_names
from tasks.parameters import ADDRESSES, Parameters
from tasks.redaction import redact_text, withhold

Function = TypeVar("Function", bound=Callable[..., Any])
Model = TypeVar("Model", bound=Parameters)

STOPPED = "Stopped by Ctrl-C.\nThe same command takes it up again."
EMPTY = "empty"  # what people are told a null is, in forms and in --help
PATTERNS = {  # in words; a test holds that each pattern of a parameter has them
    "^[0-9a-f]{32}$": "32 hexadecimal digits (0-9, a-f)",
    "^[0-9]{12}$": "the 12 digits of an AWS account",
    "^[a-z0-9-]+$": "the name of an AWS region, such as us-east-1",
    "^[1-9][0-9]*s?$": "a number of iterations (100) or of seconds (30s)",
    "^(auto|never|[0-9a-f]{32})$": "auto, never, or the id of an MLflow run, 32 hexadecimal digits",
    "^(models|runs):/.+": "models:/name@alias, models:/name/version or runs:/id/model",
}
BOUNDS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}

last_words: list[str] = []  # of a run that Ctrl-C ended


def parameters(model: type[Parameters]) -> Callable[[Function], Function]:
    """Give a flow function that takes `**given` the flat, typed, bounded and described parameters of a model."""

    def sign(function: Function) -> Function:
        signature = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty
                if field.is_required()
                else field.get_default(call_default_factory=True),
                annotation=Annotated[
                    field.annotation,
                    Field(
                        description=field.description,
                        json_schema_extra={"title": f"{model.group_of(name)} · {name}"},  # Prefect's form is flat
                    ),
                    *field.metadata,
                    *([NamedEmpty()] if NoneType in get_args(field.annotation) else []),
                ],
            )
            for name, field in model.model_fields.items()
        ]

        @wraps(function)
        def flow(**given: Any) -> Any:
            for runs in ("prefect.flow_runs", "prefect.task_runs"):
                logging.getLogger(runs).addFilter(without_traceback)
            try:
                with credentials_of(given.get("aws_block")):
                    return function(**given)
            except KeyboardInterrupt as stop:
                if flow_run.parent_flow_run_id:
                    raise
                last_words.append(str(stop) or STOPPED)
                return Crashed(message=last_words[-1])

        described = "\n".join(f"    {name}: {field.description}" for name, field in model.model_fields.items())
        flow.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
        flow.__annotations__ = {each.name: each.annotation for each in signature}
        flow.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nArgs:\n{described}\n"
        return cast(Function, flow)

    return sign


class NamedEmpty:
    """The annotation of a parameter that may be left empty: Prefect's form shows an empty field for it, and says so."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return the JSON schema of the type, with null called empty.

        Where the form finds no alternative of type null for a default of null, it shows the first one's field; a switch
        has no empty state, so there null keeps its type.
        """
        made = handler(schema)
        value, null = made["anyOf"]
        made["anyOf"] = [value, {"title": EMPTY} | (null if value["type"] == "boolean" else {"enum": [None]})]
        return made


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, without the usage of forty options above it."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and leave with exit code 2."""
        self.exit(2, f"{self.prog}: {message} (--help lists every parameter)\n")


def make_parser(model: type[Parameters], prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with an option for each field of the model: `--batch-size` for batch_size, lists with commas."""
    parser = OneLineParser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=110),
    )
    groups = {model.group_of(name): None for name in model.model_fields}
    sections = {group: parser.add_argument_group(group) for group in groups}
    for name, field in model.model_fields.items():
        section = sections[model.group_of(name)]
        option = "--" + name.replace("_", "-")
        help_text = f"{field.description} [{'; '.join(_facts(field))}]".replace("%", "%%")
        kind = _kind(field)
        if kind is bool:
            section.add_argument(option, dest=name, action=argparse.BooleanOptionalAction, help=help_text)
        elif get_origin(kind) is list:
            section.add_argument(option, dest=name, type=_read_names, metavar="A,B,…", help=help_text)
        elif get_origin(kind) is Literal:
            section.add_argument(option, dest=name, metavar="|".join(get_args(kind)), help=help_text)
        else:
            section.add_argument(option, dest=name, metavar=getattr(kind, "__name__", "value").upper(), help=help_text)
    return parser


def _read_names(text: str) -> list[str]:
    try:
        return split_names(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}: write them as CSV does, '\"a, b\",c'") from error


def _kind(field: FieldInfo) -> Any:
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    return kinds[0] if NoneType in get_args(field.annotation) and kinds else field.annotation


def _facts(field: FieldInfo) -> list[str]:
    default = field.get_default(call_default_factory=True)
    stated = "required" if field.is_required() else f"default: {EMPTY if default is None else default}"
    bounds = [
        text.format(getattr(limit, key))
        for limit in field.metadata
        for key, text in BOUNDS.items()
        if hasattr(limit, key)
    ]
    return [stated, *bounds]


def parse(model: type[Model], argv: Sequence[str] | None, prog: str, description: str) -> Model:
    """Make the model from command-line words; leave with one line and exit code 2 where they are not valid."""
    parser = make_parser(model, prog, description)
    words = vars(parser.parse_args(argv))
    try:
        return model(**words)
    except ValidationError as error:
        parser.error(tell_fault(error))


def tell_fault(error: ValidationError) -> str:
    """Return one line for the first fault that pydantic found: the option, the offending value, what it should be."""
    fault = error.errors()[0]
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "string_pattern_mismatch":
        message = f"Should be {PATTERNS[fault['ctx']['pattern']]}"
    if not fault["loc"]:
        return message
    option = "--" + str(fault["loc"][0]).replace("_", "-")
    if fault["type"] == "missing":
        return f"{option} has no default: give it"
    return redact_text(f"{option} {fault['input']!r}: {message[0].lower()}{message[1:]}")


def run(
    flow: Callable[..., Any],
    model: type[Model],
    prog: str,
    check: Callable[[Model], Any],
    argv: Sequence[str] | None = None,
) -> NoReturn:
    """Run a flow from a terminal and leave with its exit code.

    `check` answers what can be answered before anything is started; what it raises is told in one line.
    """
    description = inspect.cleandoc(flow.__doc__ or "").split("\n\nArgs:", maxsplit=1)[0]
    given = parse(model, argv, prog, description)
    try:
        check(given)
    except ShardlineError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        sys.exit(2)
    words = {  # Prefect keeps a flow run's parameters: the whole of a presigned address stays in this process
        name: withhold(value) if name in ADDRESSES and value else value for name, value in given.model_dump().items()
    }
    use_servers(argv, prog)
    interrupts, screen = Interrupts(), tidy_screen()
    try:
        state = flow(**words, return_state=True)
    except KeyboardInterrupt:  # before the flow began, or after its end
        state = Crashed(message=STOPPED)
    except Abort:  # the server has this end, but its answer came too late, and it refuses to be told again
        if not last_words:
            raise
        state = Crashed(message=last_words[-1])
    screen.end_line()
    if interrupts.heard and not state.is_completed():
        print(state.message, file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(tell_end(state, prog))


def use_servers(argv: Sequence[str] | None, prog: str) -> None:
    """Go on inside `deployments.local`, which finds or starts a Prefect server, where none is configured.

    Prefect would start one itself, for this run alone, and give it twenty seconds.
    """
    from prefect.settings import get_current_settings

    if argv is None and not get_current_settings().api.url and find_spec("deployments"):
        words = ["-m", "deployments.local", "--no-standin", "--", sys.executable, "-m", prog, *sys.argv[1:]]
        os.execv(sys.executable, [sys.executable, *words])


def tell_end(state: State[Any], prog: str) -> int:
    """Print how a run ended: what it says of itself, else in one sentence why not; return the exit code."""
    if state.is_completed():
        print(state.result())
        return 0
    failure = state.result(raise_on_failure=False)
    print(f"{prog}: {failure if isinstance(failure, ShardlineError) else state.message or state.name}", file=sys.stderr)
    return 1
