"""The checkpoint's chat template, run so that no template can hang the program or fill the memory.

Jinja's sandbox keeps a template from Python's internals, not from computing for ever. Here every render has a
budget: loops, calls, filters, operators, literals and output are charged for what they make, strings by 64
characters, containers by all they hold; what could make much in one step is bounded before it runs. Filters
that no chat template needs and that could are left out.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from tianquan.errors import CheckpointError, PromptError
from tianquan.processing.labels import printable

MAX_SOURCE_LEN = 1_000_000  # characters; the longest published templates have tens of thousands
MAX_UNITS = 1_000_000  # of work and of output; 1000 turns of the official template take 9 000
MAX_SECONDS = 30.0  # of the processor, as a process may be stopped meanwhile; for steps whose cost the units understate
UNIT_LEN = 64  # characters to a unit
CALL_UNITS = 10  # a macro takes as long as that many steps of a loop
MAX_TEXT_LEN = 20_000_000  # of one string
MAX_ARGUMENT = 100_000  # integers given to functions: widths, counts, digits
MAX_INT_BITS = 4_096

_FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float"),
    *("format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max"),
    *("min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort"),
    *("string", "title", "trim", "truncate", "unique", "upper", "wordcount"),
)
_READS_EACH = frozenset(
    ("list", "sort", "unique", "map", "select", "reject", "groupby", "min", "max", "join", "reverse")
)
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_GLOBALS = ("cycler", "dict", "joiner", "namespace", "range")
_WIDE_FORMAT = re.compile(r"\d{4}|\*|\{[^{}]*\{")  # a width of thousands, or one taken from an argument


class _BudgetError(Exception):
    """A render asked for more than `MAX_UNITS` or for too large a value."""


class ChatTemplate:
    """A compiled template. Safe to use from several threads.

    Raises:
        CheckpointError: the template does not parse.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        if len(source) > MAX_SOURCE_LEN:
            raise CheckpointError(
                f"the checkpoint's chat template has {len(source)} characters, expected at most {MAX_SOURCE_LEN}; "
                "download or copy it again"
            )
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(source)
        except Exception as error:  # the parser and Python's compiler also raise RecursionError, MemoryError, ...
            raise CheckpointError(f"the checkpoint's chat template does not parse: {_reason(error)}") from error

    def render(self, **variables: Any) -> str:
        """Return the template's text.

        Raises:
            PromptError: the template refuses the variables, fails or computes too long.
        """
        self._environment.start()
        try:
            return self._template.render(**variables)
        except PromptError:
            raise
        except _BudgetError as error:
            raise PromptError(
                f"the checkpoint's chat template {error}; send a shorter conversation, or check the template"
            ) from error
        except jinja2.TemplateError as error:
            raise PromptError(f"the checkpoint's chat template refuses these messages: {_reason(error)}") from error
        except Exception as error:  # whatever an expression of the template can raise
            raise PromptError(
                f"the checkpoint's chat template fails on these messages: {_reason(error)}; check their form"
            ) from error


def _reason(error: Exception) -> str:
    return printable(str(error) or type(error).__name__, 200)


# Sizes ------------------------------------------------------------------------------------------------------
def _children(value: Any) -> list[Any]:
    """Return what printing or comparing `value` visits."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, Namespace):
        return list(value._Namespace__attrs.values())  # it hides its __dict__
    return []


def _weight(value: Any) -> int:
    """Return the units of a value with all it holds, counted each time it is held."""
    units, rest = 0, [value]
    while rest:
        item = rest.pop()
        units += 1 + (len(item) // UNIT_LEN if isinstance(item, str | bytes) else 0)
        rest += _children(item)
        if units + len(rest) > MAX_UNITS:
            raise _BudgetError("builds a value too large to use")
    return units


def _text_len(value: Any, indent: int = 0) -> int:
    """Return about the most characters `value` takes as text, lines indented by `indent` a level."""
    length, rest = 0, [(value, 1)]
    while rest:
        item, depth = rest.pop()
        length += 6 * len(item) if isinstance(item, str | bytes) and depth > 1 else 0  # escapes: \u1234
        length += len(item) if isinstance(item, str | bytes) and depth == 1 else 32
        length += item.bit_length() // 3 if isinstance(item, int) else 0
        length += depth * indent
        rest += [(child, depth + 1) for child in _children(item)]
        if length + len(rest) > MAX_TEXT_LEN:
            break
    return length


def _require_len(length: int) -> None:
    if length > MAX_TEXT_LEN:
        raise _BudgetError(f"builds a text of more than {MAX_TEXT_LEN} characters")


def _check_format(pattern: str | bytes, mark: str, *values: Any) -> None:
    text = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
    if _WIDE_FORMAT.search(text):
        raise _BudgetError("formats with a width too large or not stated")
    _require_len(len(text) + text.count(mark) * (1_000 + sum(map(_text_len, values))))


def _check_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and abs(value) > MAX_ARGUMENT:
            raise _BudgetError(f"gives a function {printable(str(value), 20)}; expected at most {MAX_ARGUMENT}")


def _check_replace(text: Any, old: Any, new: Any, *_: Any) -> None:
    if any(all(isinstance(value, kind) for value in (text, old, new)) for kind in (str, bytes)):
        _require_len(len(text) + text.count(old) * len(new))


def _check_join(separator: Any, values: list[Any]) -> None:
    _weight(values)
    _require_len(sum(map(_text_len, values)) + len(values) * len(separator))


def _num_pieces(owner: str | bytes, name: str, args: tuple[Any, ...]) -> int:
    """Return the most pieces a method cuts a string into."""
    if name not in ("split", "rsplit", "splitlines"):
        return 0
    marks: list[Any] = [mark if isinstance(owner, str) else mark.encode() for mark in _LINE_ENDS]
    if name != "splitlines":
        if not args or not isinstance(args[0], type(owner)):  # at white space
            return len(owner) // 2 + 1
        marks = [args[0]] if args[0] else []
    return 1 + sum(owner.count(mark) for mark in marks)


def _check_method(owner: str | bytes, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Bound what a method of a string makes; return its arguments, iterators read."""
    if name == "translate":
        raise _BudgetError("calls translate, which is not supported")
    if name == "expandtabs":
        _require_len(len(owner) * MAX_ARGUMENT if args else 8 * len(owner))
    if name == "replace" and len(args) >= 2:
        _check_replace(owner, *args)
    if name == "join" and args:
        args = (list(args[0]),)
        _check_join(owner, args[0])
    return args


# Environment ------------------------------------------------------------------------------------------------
def _write_output(code: CodeGenerator, node: nodes.Output, frame: Frame) -> None:
    static = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
    code.writeline(f"environment.spend({1 + static // UNIT_LEN})")
    CodeGenerator.visit_Output(code, node, frame)


def _write_loop(code: CodeGenerator, node: nodes.For, frame: Frame) -> None:
    tick = nodes.Output([nodes.TemplateData("")]).set_environment(code.environment)
    node.body.insert(0, tick)
    if node.test is not None:  # it runs before the body, and skips it: a literal around it is charged
        tested = nodes.Getitem(nodes.List([node.test]), nodes.Const(0), "load")
        node.test = tested.set_environment(code.environment)
    CodeGenerator.visit_For(code, node, frame)


def _write_list(code: CodeGenerator, node: nodes.List, frame: Frame) -> None:
    code.write("environment.charged(")
    CodeGenerator.visit_List(code, node, frame)
    code.write(")")


def _write_dict(code: CodeGenerator, node: nodes.Dict, frame: Frame) -> None:
    code.write("environment.charged(")
    CodeGenerator.visit_Dict(code, node, frame)
    code.write(")")


def _write_tuple(code: CodeGenerator, node: nodes.Tuple, frame: Frame) -> None:
    code.write("environment.charged(" if node.ctx == "load" else "(")  # not the targets of a loop
    CodeGenerator.visit_Tuple(code, node, frame)
    code.write(")")


def _write_concatenation(code: CodeGenerator, node: nodes.Concat, frame: Frame) -> None:
    code.write("environment.concatenate((")
    for part in node.nodes:
        code.visit(part, frame)
        code.write(", ")
    code.write("))")


_WRITERS: dict[type[nodes.Node], Callable[..., None]] = {
    nodes.Output: _write_output,
    nodes.For: _write_loop,
    nodes.List: _write_list,
    nodes.Dict: _write_dict,
    nodes.Tuple: _write_tuple,
    nodes.Concat: _write_concatenation,
}


class _MeteredCode(CodeGenerator):
    """Writes charges into the code of loops, output and literals, which Jinja runs without asking."""

    def get_visitor(self, node: nodes.Node) -> Any:
        writer = _WRITERS.get(type(node))
        return super().get_visitor(node) if writer is None else functools.partial(writer, self)


class _Generation(Extension):
    """`{% generation %}`: marks what the assistant wrote for training elsewhere; here only a scope."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _MeteredCode
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        # Folding constants would run operators and filters while the template is compiled, without a budget;
        # a `finalize` that takes the context keeps output from being folded as well.
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        self._left = threading.local()
        self.finalize = self._output
        self.filters = {name: self._metered(name, self.filters[name]) for name in _FILTERS}
        self.filters["tojson"] = self._metered("tojson", _to_json)
        self.globals = {name: self.globals[name] for name in _GLOBALS}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    # Budget: of the render that runs in this thread.
    def start(self) -> None:
        self._left.units = MAX_UNITS
        self._left.deadline = time.thread_time() + MAX_SECONDS

    def spend(self, units: int) -> None:
        self._left.units -= units
        if self._left.units < 0 or time.thread_time() > self._left.deadline:
            raise _BudgetError("computes too long or writes too much")

    def charged(self, value: Any) -> Any:
        self.spend(_weight(value))
        return value

    @jinja2.pass_context
    def _output(self, context: Context, value: Any) -> Any:
        self.charged(value)
        _require_len(_text_len(value))
        return value

    # What makes values.
    def concatenate(self, parts: tuple[Any, ...]) -> Any:
        self.spend(_weight(parts))
        _require_len(_text_len(parts))
        return jinja2.runtime.markup_join(parts) if self.autoescape else jinja2.runtime.str_join(parts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and (abs(right) > MAX_INT_BITS or abs(left) > 2**64):
            raise _BudgetError("raises to a power too large")
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | bytes | list | tuple) and isinstance(times, int):
                    _require_len(len(value) * times)
                    self.spend(max(0, times) * _weight(value) if isinstance(value, list | tuple) else 1)
        if operator == "%" and isinstance(left, str | bytes):
            _check_format(left, "%", right)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > MAX_INT_BITS:
            raise _BudgetError("computes a number too large")
        if isinstance(result, str | bytes):
            _require_len(len(result))
        return self.charged(result)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        formatted = super().wrap_str_format(value)
        if formatted is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, "{", args, kwargs)
            return formatted(*args, **kwargs)

        return bounded

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.spend(CALL_UNITS)
        _check_arguments(args, kwargs)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str | bytes):
            self.spend(_num_pieces(owner, getattr(obj, "__name__", ""), args))
            args = _check_method(owner, getattr(obj, "__name__", ""), args)
        return self.charged(super().call(context, obj, *args, **kwargs))

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter with its charge; what Jinja passes it first besides the value is kept."""
        leading = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def metered(*args: Any, **kwargs: Any) -> Any:
            before, (value, *options) = args[:leading], args[leading:]
            self.spend(1)
            _check_arguments(tuple(options), kwargs)
            value = self._bounded_input(name, value, options, kwargs)
            return self.charged(function(*before, value, *options, **kwargs))

        return metered

    def _bounded_input(self, name: str, value: Any, options: list[Any], kwargs: Mapping[str, Any]) -> Any:
        """Bound what a filter makes before it runs; return its input, an iterator read."""
        if name in _READS_EACH and isinstance(value, str | bytes):
            self.spend(len(value))
        if name in ("string", "trim", "lower", "upper", "title", "capitalize", "e", "escape", "tojson", "replace"):
            indent = kwargs.get("indent", options[1] if name == "tojson" and len(options) > 1 else 0)
            _require_len(_text_len(value, indent if isinstance(indent, int) else len(indent or "")))
        if name == "replace":
            _check_replace(str(value), *(str(kwargs.get(key, "")) for key in ("old", "new")) if kwargs else options)
        if name == "format":
            _check_format(str(value), "%", options, dict(kwargs))
        if name == "indent":
            width = kwargs.get("width", options[0] if options else 4)
            _require_len(len(value) + (value.count("\n") + 1) * (width if isinstance(width, int) else len(width)))
        if name == "join":
            value = list(value)
            _check_join(str(kwargs.get("d", options[0] if options else "")), value)
        return value


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as Hugging Face's filter does; Jinja's own escapes HTML, and prompts are not HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern[:100])


def _raise_exception(message: Any) -> None:
    raise PromptError(f"the checkpoint's chat template refuses these messages: {printable(str(message), 300)}")
