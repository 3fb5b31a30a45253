"""JSON and YAML that others wrote, read strictly: a name that is there twice is refused, where the libraries take the last one."""

import json
import re
from typing import Any

from .errors import need

TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"(\s*:)?|[{}]')  # of JSON: strings, those that are names, and where objects begin and end


class Unreadable(ValueError):
    """A document cannot be read; ``line`` says where, from 1, and the message why."""

    def __init__(self, line: int, why: str):
        super().__init__(why)
        self.line = line


def of_json(text: str) -> Any:
    """What JSON says.

    Raises:
        Unreadable: it is none, an object holds a name twice, it is nested too deeply, or a number has thousands of digits.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise Unreadable(error.lineno, f"not JSON ({error.msg}, character {error.colno})") from None
    except RecursionError:
        raise Unreadable(1, "nested too deeply") from None
    except _Twice:
        raise _second(text) from None
    except ValueError as error:  # of int
        raise Unreadable(1, f"not JSON ({str(error).partition(':')[0]})") from None


def of_yaml(text: str) -> Any:
    """What YAML says.

    Raises:
        Unreadable: it is none, its outermost table holds a name twice, it is nested too deeply, or a value is not of its kind.
        BadInput: PyYAML is not installed.
    """
    yaml = need("yaml")
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        names: set[tuple[str, str]] = set()
        for key, _ in root.value if isinstance(root, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in names:
                raise Unreadable(key.start_mark.line + 1, f"{key.value!r} is there twice")
            names.add((key.tag, str(key.value)))
        return None if root is None else loader.construct_document(root)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise Unreadable(line, f"not YAML ({getattr(error, 'problem', None) or 'it holds what is no text'})") from None
    except RecursionError:
        raise Unreadable(1, "nested too deeply") from None
    except Unreadable:
        raise
    except (ValueError, TypeError, ArithmeticError) as error:  # of int, float and datetime
        raise Unreadable(1, f"not YAML ({error})") from None


class _Twice(Exception):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice
    return found


def _second(text: str) -> Unreadable:
    """Says which is the first name that its object holds already."""
    names: list[set[str]] = []
    for token in TOKENS.finditer(text):
        if token[0] == "{":
            names.append(set())
        elif token[0] == "}":
            names.pop()
        elif token[1]:
            name = json.loads(token[0][: -len(token[1])])
            if name in names[-1]:
                break
            names[-1].add(name)
    return Unreadable(text.count("\n", 0, token.start()) + 1, f"{name!r} is there twice")
