# SPDX-License-Identifier: Apache-2.0
"""What a local process is called: its unit, its container, or the program it runs."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rover_plugin.discovery.procfs import ProcessFacts

MAX_NAME = 70  # the OAP cuts services and instances there (serviceNameMaxLength, instanceNameMaxLength)
_DIGEST = 8


@dataclass(frozen=True, slots=True)
class _Interpreter:
    """How an interpreter's command line names the program.

    Attributes:
        with_value: options that take the next argument.
        inline: options that carry the program's text, which is no name.
        names: options whose value is the program: a module or an archive.
    """

    with_value: frozenset[str] = frozenset()
    inline: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


_PYTHON = _Interpreter(frozenset({"-W", "-X", "--check-hash-based-pycs"}), frozenset({"-c"}), frozenset({"-m"}))
_NODE = _Interpreter(
    frozenset({"-r", "--require", "--import", "--loader", "--experimental-loader", "-C", "--conditions", "--env-file"}),
    frozenset({"-e", "--eval", "-p", "--print", "-pe"}),
)
_JAVA = _Interpreter(
    frozenset(
        {"-cp", "-classpath", "--class-path", "-p", "--module-path", "--upgrade-module-path"}
        | {"--add-modules", "--add-exports", "--add-opens", "--add-reads", "--limit-modules", "--patch-module"}
    ),
    names=frozenset({"-jar", "-m", "--module"}),
)
_SCRIPTED = _Interpreter(frozenset({"-I", "-r"}), frozenset({"-e", "-E", "-c"}))

_INTERPRETERS = (
    (re.compile(r"(?:python|pypy)[\d.]*"), _PYTHON),
    (re.compile(r"node|nodejs|node\d+|bun"), _NODE),
    (re.compile(r"java"), _JAVA),
    (re.compile(r"(?:ruby|perl|php|lua|sh|bash|dash)[\d.-]*"), _SCRIPTED),
)
_STEM_SUFFIXES = (
    ".py",
    ".pyc",
    ".pyz",
    ".js",
    ".mjs",
    ".cjs",
    ".ts",
    ".jar",
    ".war",
    ".rb",
    ".pl",
    ".php",
    ".sh",
)


def file_name(path: str) -> str:
    """The last part of a path; pathlib costs more than all the rest of naming."""
    return path.rstrip("/").rpartition("/")[2]


def executable_name(facts: ProcessFacts) -> str:
    """File name of the executable; the kernel's short name where the path is not to be had."""
    return file_name(facts.exe) or facts.comm or str(facts.key.pid)


def program_name(facts: ProcessFacts) -> str:
    """Name of what runs: the executable, or for interpreters the script, module, archive or main class.

    `python3 -m http.server` is `http.server`, `node /srv/shop.js` is `shop`, `java -jar cart-1.2.jar` is `cart-1.2`,
    `java -cp lib/* com.example.Main` is `com.example.Main`, and `python3 -c '…'` stays `python3`.
    """
    executable = executable_name(facts)
    for pattern, interpreter in _INTERPRETERS:
        if pattern.fullmatch(executable):
            return _interpreted(interpreter, facts.cmdline) or executable
    return executable


def _interpreted(interpreter: _Interpreter, cmdline: Sequence[str]) -> str:
    if len(cmdline) == 1 and ":" in cmdline[0]:  # a title written over the arguments: "gunicorn: master [shop]"
        return cmdline[0].partition(":")[0].strip()
    arguments = iter(cmdline[1:])
    for argument in arguments:
        if argument in interpreter.inline:
            return ""
        if argument in interpreter.names:
            return _stem(next(arguments, "").partition("/")[0] if argument != "-jar" else next(arguments, ""))
        if argument in interpreter.with_value:
            next(arguments, None)
        elif not argument.startswith(("-", "@")):
            return _stem(argument)
    return ""


def _stem(program: str) -> str:
    name = file_name(program)
    suffix = next((suffix for suffix in _STEM_SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix) or name


def service_name(facts: ProcessFacts) -> str:
    """The service a process belongs to when no rule names it: unit, container, container and unit, else program.

    A unit of a container, `web/nginx`, is kept apart from one of the host with the same name.
    """
    cgroup = facts.cgroup
    named = cgroup.unit.endswith(".service") and not cgroup.generic
    unit = cgroup.unit.removesuffix(".service") if named else ""
    if facts.container is not None:
        return f"{facts.container.service}/{unit}" if unit else facts.container.service
    return unit or program_name(facts)


def bounded(name: str) -> str:
    """Cuts a name to what the backend keeps, so that two long names that differ still do so afterwards."""
    if len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:_DIGEST]
    return f"{name[: MAX_NAME - _DIGEST - 1]}~{digest}"
