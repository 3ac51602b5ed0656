"""The grammar of qemu.conf, line by line as libvirt's src/util/virconf.c has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.virconf import MAX_NESTING, parse

if TYPE_CHECKING:
    from libvirt_cgroup_hooks.virconf import Value

PATH = "/etc/libvirt/cgroup-hooks.conf"


def pairs(text: str) -> list[tuple[str, Value]]:
    return [(statement.key, statement.value) for statement in parse(text, PATH)]


def value(text: str) -> Value:
    [(key, found)] = pairs(f"key = {text}")
    assert key == "key"
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # integers
        ("0", 0),
        ("1", 1),
        ("007", 7),
        ("+5", 5),
        ("-5", -5),
        ("18446744073709551615", 2**64 - 1),
        # strings have no escapes
        ('""', ""),
        ("''", ""),
        ('"a b"', "a b"),
        ("'a \"b\"'", 'a "b"'),
        ('"it\'s"', "it's"),
        ('"a\\"', "a\\"),
        ('"a\\nb"', "a\\nb"),
        ('"# no comment"', "# no comment"),
        ('"a;b"', "a;b"),
        ('"\t"', "\t"),
        ('"ü💩"', "ü💩"),
        ('"""a"""', "a"),
        ('"""a\nb"""', "a\nb"),
        ('"""a "quoted" word"""', 'a "quoted" word'),
        ('""""""\n', ""),
        # lists
        ("[]", []),
        ("[ ]", []),
        ("[1]", [1]),
        ("[1,2]", [1, 2]),
        ("[ 1 , 2 ]", [1, 2]),
        ("[1,]", [1]),
        ("[ 'a', \"b\", 3 ]", ["a", "b", 3]),
        ("[\n  'a',\n\n  'b',\n]", ["a", "b"]),
        ("[\r\n'a'\r\n]", ["a"]),
        ("[[1, 2], []]", [[1, 2], []]),
        ("['a#b']", ["a#b"]),
        ('["""a\nb"""]', ["a\nb"]),
    ],
)
def test_values(text: str, expected: Value) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("\n \t\r\n\n", []),
        ("# only prose", []),
        ("#a = 1\n", []),
        ("a=1", [("a", 1)]),
        ("a = 1\n", [("a", 1)]),
        ("a\t=\t1\t\n", [("a", 1)]),
        ("  a = 1", [("a", 1)]),
        ("a = 1 # why", [("a", 1)]),
        ("a = 1# why", [("a", 1)]),
        ("a = 'x'#why\nb = 2", [("a", "x"), ("b", 2)]),
        ("a = 1\nb = 2\n", [("a", 1), ("b", 2)]),
        ("a = 1\rb = 2\r", [("a", 1), ("b", 2)]),
        ("a = 1\r\nb = 2\r\n", [("a", 1), ("b", 2)]),
        ("a = 1; b = 2", [("a", 1), ("b", 2)]),
        ("a = 1;\n\nb = 2;", [("a", 1), ("b", 2)]),
        ("a = 1; # why\nb = 2", [("a", 1), ("b", 2)]),
        ("a = [ 1,\n 2 ] # why", [("a", [1, 2])]),
        ("a = 1\na = 2", [("a", 1), ("a", 2)]),
        ("A_9z = 1", [("A_9z", 1)]),
    ],
)
def test_files(text: str, expected: list[tuple[str, Value]]) -> None:
    assert pairs(text) == expected


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        # names
        ("= 1", 1, 'expected a setting\'s name, found "= 1": write key = value, or # before a comment'),
        ("\n\n9a = 1", 3, 'expected a setting\'s name, found "9a = 1"'),
        ("_a = 1", 1, 'expected a setting\'s name, found "_a = 1"'),
        ("é = 1", 1, 'expected a setting\'s name, found "é = 1"'),
        ("[section]", 1, 'expected a setting\'s name, found "[section]"'),
        ("; a = 1", 1, 'expected a setting\'s name, found "; a = 1"'),
        ("a = 1;; b = 2", 1, 'expected a setting\'s name, found "; b = 2"'),
        ("\x1b[0m", 1, 'expected a setting\'s name, found "\\x1b[0m"'),
        ("a", 1, '"a" is not followed by "=": write key = value'),
        ("a 1", 1, '"a" is not followed by "="'),
        ("a\n= 1", 1, '"a" is not followed by "="'),
        ("a-b = 1", 1, '"a" is not followed by "="'),
        ("a: 1", 1, '"a" is not followed by "="'),
        # values
        ("a =", 1, 'expected a value, found the end of the file: write a number, a "string" or a [ "list" ]'),
        ("a =\n1", 1, "expected a value, found the end of the line"),
        ("a = # why", 1, 'expected a value, found "# why"'),
        ("a = word", 1, 'expected a value, found "word"'),
        ("a = true", 1, 'expected a value, found "true"'),
        ("a = ٣", 1, 'expected a value, found "٣"'),
        ("a = -", 1, '"-" is not a number: write decimal digits'),
        ("a = +x", 1, '"+" is not a number'),
        ("a = 123456789012345678901", 1, '"123456789012345678901" is not a number'),
        ("a = 1.5", 1, 'unexpected ".5" after the value: one statement a line, or ";" between them'),
        ("a = 0x10", 1, 'unexpected "x10" after the value'),
        ("a = 4 GiB", 1, 'unexpected "GiB" after the value'),
        ("a = 1 b = 2", 1, 'unexpected "b = 2" after the value'),
        ("a = 'x' 'y'", 1, "unexpected \"'y'\" after the value"),
        ('a = """"""', 1, 'unexpected """""" after the value'),  # 6 bytes to the end: not a long string
        # strings
        ('a = "x', 1, 'the string that begins here has no closing ": close it on the same line'),
        ('a = 1\nb = "x\ny"', 2, 'the string that begins here has no closing "'),
        ("a = 'x\"", 1, "the string that begins here has no closing '"),
        ("a = 'x\ry'", 1, "the string that begins here has no closing '"),
        ('\na = """x\n\n"', 2, 'the string that begins here has no closing """'),
        # lists
        ("a = [", 1, "the list that begins here has no closing ]: close it"),
        ("\na = [ 1,\n\n", 2, "the list that begins here has no closing ]"),
        ("a = [ 1", 1, "expected , or ] in the list, found the end of the file"),
        ("a = [,]", 1, 'expected a value, found ",]"'),
        ("a = [1,,2]", 1, 'expected a value, found ",2]"'),
        ("a = [1 2]", 1, 'expected , or ] in the list, found "2]": comments are not allowed in lists'),
        ("a = [1\n# why\n]", 2, 'expected , or ] in the list, found "# why": comments are not allowed in lists'),
        ("a = [1, # why\n2]", 1, 'expected a value, found "# why"'),
        ("a = [1] ]", 1, 'unexpected "]" after the value'),
        ("a = " + "[" * (MAX_NESTING + 1), 1, "lists are nested too deeply: no setting takes a list in a list"),
        ("a = " + "[" * 100_000, 1, "lists are nested too deeply"),
    ],
)
def test_bad_files(text: str, line: int, message: str) -> None:
    with pytest.raises(Error) as error:
        parse(text, PATH)
    assert str(error.value).startswith(f"{PATH}:{line}: {message}")


@pytest.mark.parametrize("newline", ["\n", "\r", "\r\n"])
def test_lines_are_counted(newline: str) -> None:
    text = newline.join(["# first", "", "a = [", " 1 ]", 'b = """', '"""; c = 3', "d = 4"])
    assert [(s.key, s.line) for s in parse(text, PATH)] == [("a", 3), ("b", 5), ("c", 6), ("d", 7)]


def test_where_a_statement_begins_and_ends() -> None:
    text = "# prose\n a = [ 1 ] # why\nb = 'x'"
    assert [text[s.start : s.end] for s in parse(text, PATH)] == ["a = [ 1 ]", "b = 'x'"]
