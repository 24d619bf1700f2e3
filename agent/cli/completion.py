"""`driveway completion bash|zsh|fish`, and the manual page: both from the one table of verbs, `agent.cli.main.parser`.

What is completed: verbs and actions, options, the words that an option or an argument may be, and file names where a
path is wanted. No shell asks the daemon for it, so that a key press never waits. The package installs all of them
(`systemd.package`), and so a new verb is completed without anybody thinking of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent import __version__
from agent.cli import exits
from agent.cli.examples import EXAMPLES

FILES = {"bash": "bash-completion/completions/driveway", "zsh": "zsh/site-functions/_driveway",
         "fish": "fish/vendor_completions.d/driveway.fish"}  # fmt: skip
"""Where a shell finds it, below /usr/share."""
MANUAL = "man/man1/driveway.1"


@dataclass(frozen=True)
class Option:
    """One option: its names, what it is for, and what follows it ("": nothing; "file", "word", or choices)."""

    names: tuple[str, ...]
    about: str
    follows: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """What may stand after these words."""

    words: str
    about: str
    verbs: tuple[tuple[str, str], ...]
    options: tuple[Option, ...]
    choices: tuple[str, ...]
    takes_files: bool
    usage: str


def completion(options: argparse.Namespace) -> int:
    """Print what the shell reads."""
    print(script(options.shell), end="")
    return exits.FINE


def script(shell: str) -> str:
    """The completion for one shell."""
    from agent.cli.main import parser  # noqa: PLC0415 - it imports this module's verb by name

    found = list(places(parser()))
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](found)


def places(parser: argparse.ArgumentParser, words: str = "", about: str = "") -> Iterator[Place]:
    """This parser's place, and those of its verbs, depth first."""
    verbs: list[tuple[str, str]] = []
    inner: list[tuple[str, str, argparse.ArgumentParser]] = []
    options, choices, takes_files = [], [], False
    for action in parser._actions:  # noqa: SLF001 - argparse shows its table in no other way
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for one in action._choices_actions:  # noqa: SLF001
                verbs.append((one.dest, one.help or ""))
                inner.append((one.dest, one.help or "", action.choices[one.dest]))
        elif action.help == argparse.SUPPRESS:
            continue
        elif action.option_strings:
            options.append(_option(action))
        else:
            choices += [str(one) for one in action.choices or ()]
            takes_files |= action.type is Path
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    yield Place(words, about, tuple(verbs), tuple(options), tuple(choices), takes_files, usage)
    for name, said, verb in inner:
        yield from places(verb, f"{words} {name}".strip(), said)


def _option(action: argparse.Action) -> Option:
    follows = ""
    if action.nargs != 0:
        follows = "file" if action.type is Path else "word"
    about = (action.help or "").replace("%%", "%")
    return Option(tuple(action.option_strings), about, follows, tuple(str(one) for one in action.choices or ()))


# --- bash -------------------------------------------------------------------------------------------------------------

_BASH = """\
# bash completion for driveway {version}; made by `driveway completion bash`
_driveway() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} at="" word index
    local verbs="" options="" choices="" files="" valued=""
    for ((index = 1; index <= COMP_CWORD; index++)); do
        verbs="" options="" choices="" files="" valued=""
        case "$at" in
{cases}
        esac
        ((index == COMP_CWORD)) && break
        word=${{COMP_WORDS[index]}}
        [[ " $valued " == *" $word "* ]] && {{ ((index++)); ((index == COMP_CWORD)) && break; continue; }}
        [[ -n $word && " $verbs " == *" $word "* ]] && at="$at $word"
    done
    COMPREPLY=()
    case "$at:$prev" in
{values}
    esac
    if [[ " $valued " == *" $prev "* ]]; then
        return
    elif [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
        return
    fi
    mapfile -t COMPREPLY < <(compgen -W "$verbs $choices" -- "$cur")
    if [[ -n $files ]]; then
        compopt -o filenames
        mapfile -t -O "${{#COMPREPLY[@]}}" COMPREPLY < <(compgen -f -- "$cur")
    fi
}}
complete -F _driveway driveway
"""


def _bash(found: list[Place]) -> str:
    cases, values = [], []
    for place in found:
        at = f" {place.words}" if place.words else ""
        names = " ".join(name for option in place.options for name in option.names)
        valued = " ".join(name for option in place.options if option.follows for name in option.names)
        cases.append(
            f'            "{at}") verbs="{" ".join(name for name, _ in place.verbs)}" options="{names}" '
            f'choices="{" ".join(place.choices)}" files="{"yes" if place.takes_files else ""}" valued="{valued}" ;;'
        )
        for option in place.options:
            pattern = "|".join(f'"{at}:{name}"' for name in option.names)
            if option.choices:
                words = " ".join(option.choices)
                values.append(f'        {pattern}) mapfile -t COMPREPLY < <(compgen -W "{words}" -- "$cur"); return ;;')
            elif option.follows == "file":
                reply = 'compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;'
                values.append(f"        {pattern}) {reply}")
    return _BASH.format(version=__version__, cases="\n".join(cases), values="\n".join(values))


# --- zsh --------------------------------------------------------------------------------------------------------------

_ZSH = """\
#compdef driveway
# zsh completion for driveway {version}; made by `driveway completion zsh`
_driveway() {{
    local at="" word
    local -a arguments
    local -A verbs
    verbs=({verbs})
    for word in "${{(@)words[2,CURRENT-1]}}"; do
        [[ -n $word && " ${{verbs[x$at]}} " == *" $word "* ]] && at="$at $word"
    done
    case "$at" in
{cases}
    esac
    _arguments $arguments
}}
_driveway "$@"
"""


def _zsh(found: list[Place]) -> str:
    verbs, cases = [], []
    for place in found:
        at = f" {place.words}" if place.words else ""
        verbs.append(f"{_quoted(f'x{at}')} {_quoted(' '.join(name for name, _ in place.verbs))}")
        specs = [spec for option in place.options for spec in _zsh_option(option)]
        words = [name for name, _ in place.verbs] + list(place.choices)
        if words:
            specs.append(f"*: :({' '.join(words)})")
        elif place.takes_files:
            specs.append("*:file:_files")
        else:
            specs.append("*: : ")  # the verb's own words
        cases.append(f"        {_quoted(at)}) arguments=({' '.join(map(_quoted, specs))}) ;;")
    return _ZSH.format(version=__version__, verbs=" ".join(verbs), cases="\n".join(cases))


def _zsh_option(option: Option) -> Iterator[str]:
    about = option.about.replace("[", "(").replace("]", ")").replace(":", " ")
    for name in option.names:
        what = ""
        if option.choices:
            what = f":word:({' '.join(option.choices)})"
        elif option.follows:
            what = ":file:_files" if option.follows == "file" else ":value: "
        yield f"{name}[{about}]{what}"


# --- fish -------------------------------------------------------------------------------------------------------------


def _fish(found: list[Place]) -> str:
    lines = [
        f"# fish completion for driveway {__version__}; made by `driveway completion fish`",
        "function __driveway_at",
        "    set -l verbs " + " ".join(sorted({name for place in found for name, _ in place.verbs})),
        "    set -l at",
        "    for word in (commandline -opc)[2..]",
        "        contains -- $word $verbs; and set -a at $word",
        "    end",
        '    test "$at" = "$argv"',
        "end",
        "complete -c driveway -f",
    ]
    for place in found:
        where = f"-n {_quoted(f'__driveway_at {place.words}'.strip())}"
        lines += [f"complete -c driveway {where} -a {name} -d {_quoted(about)}" for name, about in place.verbs]
        lines += [f"complete -c driveway {where} -a {_quoted(' '.join(place.choices))}"] * bool(place.choices)
        lines += [f"complete -c driveway {where} -F"] * place.takes_files
        for option in place.options:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            what = ""
            if option.choices:
                what = f" -x -a {_quoted(' '.join(option.choices))}"
            elif option.follows:
                what = " -r -F" if option.follows == "file" else " -x"
            lines.append(f"complete -c driveway {where} {names}{what} -d {_quoted(option.about)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """For zsh and fish: in single quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "'\\''") + "'"


# --- the manual page --------------------------------------------------------------------------------------------------


def manual() -> str:
    """driveway(1), in the man macros."""
    from agent.cli.main import parser  # noqa: PLC0415 - as above

    top = parser()
    first, *rest = places(top)
    lines = [
        f'.TH DRIVEWAY 1 "" "driveway {__version__}" "Driveway"',
        ".SH NAME",
        "driveway \\- lend a parked car's idle computer, and look at what it does",
        ".SH SYNOPSIS",
        f".B {_roff(first.usage)}",
        ".SH DESCRIPTION",
        _roff(top.description or ""),
        ".SH VERBS",
    ]
    for place in rest:
        lines += [f'.SS "{_roff(place.words)}"', _roff(place.about), ".PP", f".B {_roff(place.usage)}"]
        for option in place.options:
            if option.names[-1] not in {"--help", "--json", "--socket", "--config"}:
                lines += [".TP", f".B {_roff(', '.join(option.names))}", _roff(option.about)]
        for example in EXAMPLES.get(place.words, ()):
            lines += [".PP", ".EX", f"  {_roff(example)}", ".EE"]
    lines += [
        ".SH OPTIONS OF EVERY VERB",
        *(".TP", ".B \\-\\-json", "print JSON instead of text"),
        *(".TP", ".B \\-\\-config", "the configuration; default: $DRIVEWAY_CONFIG, else /etc/driveway/agent.toml"),
        *(".TP", ".B \\-\\-socket", "the daemon's control socket; default: from the configuration"),
        ".SH EXIT STATUS",
        "0 fine, 1 failed, 2 usage, 3 daemon unreachable, 4 degraded, 5 refused by policy",
        ".SH FILES",
        *(
            ".TP",
            ".I /etc/driveway/agent.toml",
            "the configuration, over which /etc/driveway/agent.toml.d/*.toml is laid",
        ),
        *(".TP", ".I /run/driveway/control.sock", "the control socket"),
        *(".TP", ".I /var/lib/driveway", "the state: keys, ledger, results"),
    ]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{text}" if text.startswith((".", "'")) else text
