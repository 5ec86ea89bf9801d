# SPDX-License-Identifier: BSD-2-Clause
"""Planting a bug and taking it out again."""

from __future__ import annotations
import __future__

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Final, TypeVar

import attrs

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

_ID: Final = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)+")
BUG_CLASSES: Final = 30
"""Number of bug classes of TEE mediation; see the documentation's list."""


class MutantError(Exception):
    """A mutant that cannot be planted: what it patches is not there, or its record is wrong."""


class Patch:
    """Replaces attributes and mapping items, and remembers how to put them back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def attribute(self, owner: object, name: str, value: object) -> None:
        """Replace attribute ``name`` of a module, class or object; :class:`MutantError` if absent."""
        if not hasattr(owner, name):
            raise MutantError(f"{owner!r} has no attribute {name!r}")
        own = getattr(owner, "__dict__", None)
        # A slot or another descriptor of the type (a function's code) is never in the dictionary.
        computed = hasattr(type(getattr(type(owner), name, None)), "__set__")
        inherited = own is not None and name not in own and not computed
        # The raw entry, so that static methods and properties come back as what they were.
        stored = own is not None and name in own
        old = own[name] if own is not None and stored else getattr(owner, name)
        setattr(owner, name, value)
        if inherited:
            self._undo.append(lambda: delattr(owner, name))
        else:
            self._undo.append(lambda: setattr(owner, name, old))

    def wrap(self, owner: object, name: str, wrapper: Callable[[T], T]) -> None:
        """Replace a function by ``wrapper(original)``."""
        self.attribute(owner, name, wrapper(getattr(owner, name)))

    def edit(self, function: object, *changes: tuple[str, str]) -> None:
        """Change the text of a Python function: each ``(old, new)`` in order, each exactly once.

        The text is that of :func:`ast.unparse` (single quotes, one line for each statement, no
        comments), so that layout does not matter. The function object stays and gets the changed
        code: whoever has imported it, or has it in a table, calls the mutant. New names must be
        known where the function is defined. :class:`MutantError` if it has no source, or does not
        contain ``old`` once.
        """
        self.attribute(function, "__code__", _edited(function, changes))

    def item(self, mapping: MutableMapping[K, V], key: K, value: V) -> None:
        """Replace the value of an existing key; :class:`MutantError` if it is absent."""
        if key not in mapping:
            raise MutantError(f"no item {key!r}")
        old = mapping[key]
        mapping[key] = value
        self._undo.append(lambda: mapping.__setitem__(key, old))

    def undo(self) -> None:
        """Put everything back, the last change first."""
        while self._undo:
            self._undo.pop()()


def _edited(function: object, changes: tuple[tuple[str, str], ...]) -> CodeType:
    """The code of ``function`` after ``changes``."""
    if not isinstance(function, FunctionType):
        raise MutantError(f"{function!r} is no Python function")
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except OSError as error:
        raise MutantError(f"{function.__qualname__} has no source") from error
    definition = tree.body[0]
    if isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef):
        definition.decorator_list.clear()
    text = ast.unparse(tree)
    for old, new in changes:
        found = text.count(old)
        if found != 1:
            raise MutantError(f"{function.__qualname__} contains {found} times {old!r}")
        text = text.replace(old, new)
    code = function.__code__
    try:
        changed = ast.increment_lineno(ast.parse(text), code.co_firstlineno - 1)
    except SyntaxError as error:
        raise MutantError(f"{function.__qualname__} would be no Python: {error}") from error
    flags = __future__.annotations.compiler_flag
    module = compile(changed, code.co_filename, "exec", flags, dont_inherit=True)
    for constant in module.co_consts:
        if isinstance(constant, CodeType) and constant.co_name == code.co_name:
            if constant.co_freevars != code.co_freevars:
                raise MutantError(f"{function.__qualname__} is a closure")
            return constant
    raise MutantError(f"{function.__qualname__} is no plain function")


@attrs.frozen(kw_only=True)
class Mutant:
    """One planted bug.

    ``id``: dotted lower-case words, never reused. ``story``: how a sensible person comes to write
    this bug, and what it costs. ``bug_class``: number of the class, 1 to 30. ``breaks``: ids of the
    rules and invariants (``"I3"``) that no longer hold. ``plant``: makes the changes; it imports
    what it patches itself, so that listing mutants loads nothing.
    """

    id: str = attrs.field(validator=attrs.validators.matches_re(_ID))
    story: str = attrs.field(validator=attrs.validators.min_len(20))
    bug_class: int = attrs.field(
        validator=[attrs.validators.ge(1), attrs.validators.le(BUG_CLASSES)]
    )
    breaks: tuple[str, ...] = attrs.field(validator=attrs.validators.min_len(1))
    plant: Callable[[Patch], None] = attrs.field(repr=False, eq=False)


@contextmanager
def planted(mutant: Mutant) -> Iterator[None]:
    """Inside the block the bug is there. Objects made inside should not be used after it."""
    patch = Patch()
    try:
        mutant.plant(patch)
        yield
    finally:
        patch.undo()


def survives(mutant: Mutant, test: Callable[[], object]) -> bool:
    """True if ``test`` does not notice the bug (raises nothing).

    :class:`MutantError` passes through, and so does whatever planting raises: a mutant that cannot be
    planted shows nothing.
    """
    with planted(mutant):
        return _passes(test)


def _passes(test: Callable[[], object]) -> bool:
    try:
        test()
    except (MutantError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException:  # a test that fails inside pytest.raises raises no Exception
        return False
    return True


def expect_killed(mutant: Mutant, test: Callable[[], object]) -> None:
    """Assert that ``test`` passes on the sound code and fails under ``mutant``."""
    test()
    if survives(mutant, test):
        raise AssertionError(
            f"mutant {mutant.id} (bug class {mutant.bug_class}, breaks"
            f" {', '.join(mutant.breaks)}) survived: {mutant.story}"
        )
    test()
