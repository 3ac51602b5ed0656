"""The grammar of qemu.conf, line by line as libvirt's src/util/virconf.c has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from libvirt_cgroup_hooks.errors import Error
from libvirt_cgroup_hooks.virconf import MAX_NESTING, edited, parse

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
        (
            "= 1",
            1,
            'expected a setting\'s name, found "= 1": write key = value, or # before a comment',
        ),
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
        (
            "a =",
            1,
            "expected a value, found the end of the file: "
            'write a number, a "string" or a [ "list" ]',
        ),
        ("a =\n1", 1, "expected a value, found the end of the line"),
        ("a = # why", 1, 'expected a value, found "# why"'),
        ("a = word", 1, 'expected a value, found "word": put it in quotes: "word"'),
        ("a = 4 GiB # all", 1, 'unexpected "GiB # all" after the value: put it in quotes: "4 GiB"'),
        ("a = b = 1", 1, 'expected a value, found "b = 1": write a number, a "string" or a ['),
        ("a = [b]", 1, 'expected a value, found "b]": write a number, a "string" or a ['),
        ("a = true", 1, 'expected a value, found "true"'),
        ("a = ٣", 1, 'expected a value, found "٣"'),
        ("a = -", 1, '"-" is not a number: write decimal digits'),
        ("a = +x", 1, '"+" is not a number'),
        ("a = 123456789012345678901", 1, '"123456789012345678901" is not a number'),
        (
            "a = 1.5",
            1,
            'unexpected ".5" after the value: put it in quotes: "1.5"',
        ),
        ("a = 0x10", 1, 'unexpected "x10" after the value'),
        ("a = 0-1  # two", 1, 'unexpected "-1  # two" after the value: put it in quotes: "0-1"'),
        ("a = 1 b = 2", 1, 'unexpected "b = 2" after the value: write one setting per line'),
        ("a = 'x' 'y'", 1, "unexpected \"'y'\" after the value"),
        # 6 bytes to the end: not a long string
        ('a = """"""', 1, 'unexpected """""" after the value'),
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
        (
            "a = [1 2]",
            1,
            'expected , or ] in the list, found "2]": comments are not allowed in lists',
        ),
        (
            "a = [1\n# why\n]",
            2,
            'expected , or ] in the list, found "# why": comments are not allowed in lists',
        ),
        ("a = [1, # why\n2]", 1, 'expected a value, found "# why"'),
        ("a = [1] ]", 1, 'unexpected "]" after the value'),
        (
            "a = " + "[" * (MAX_NESTING + 1),
            1,
            "lists are nested too deeply: no setting takes a list in a list",
        ),
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


# editing


@pytest.mark.parametrize(
    ("text", "after"),
    [
        # set: in place, whatever is beside it
        ("key = 1\n", "key = NEW\n"),
        ("key = 1", "key = NEW"),
        ("a = 1\nkey = 'x' # why\nb = 2\n", "a = 1\nkey = NEW # why\nb = 2\n"),
        ("  key=1# why", "  key = NEW# why"),
        ("a = 1; key = 2; b = 3", "a = 1; key = NEW; b = 3"),
        ("key = [ 'a',\n 'b', ] # why\nb = 2", "key = NEW # why\nb = 2"),
        ('key = """a\n#b\n"""; b = 2\n', "key = NEW; b = 2\n"),
        ("key = 1\r\nb = 2\r\n", "key = NEW\r\nb = 2\r\n"),
        ("key = 1\rb = 2\r", "key = NEW\rb = 2\r"),
        ("key = 1\nkey = 2\n", "key = NEW\nkey = 2\n"),  # the first one counts
        ("#key = 1\nkey = 2\n", "#key = 1\nkey = NEW\n"),
        # not set: below the sample
        ("# prose\n#key = 1\n\n#b = 2\n", "# prose\n#key = 1\nkey = NEW\n\n#b = 2\n"),
        ("## key = 1\na = 1", "## key = 1\nkey = NEW\na = 1"),
        ("#key = 1\r\n#b = 2\r\n", "#key = 1\r\nkey = NEW\r\n#b = 2\r\n"),
        ("#key = 1\n#key = 2\n", "#key = 1\nkey = NEW\n#key = 2\n"),
        (
            "#b = 1\n# key is what counts\n#keys = 1\n",
            "#b = 1\n# key is what counts\n#keys = 1\nkey = NEW\n",
        ),
        ('a = """\n#key = 1\n"""\n', 'a = """\n#key = 1\n"""\nkey = NEW\n'),  # a string, no sample
        (
            'a = [\'x\', """\nkey = 1\n"""]\n#key = 1\n',
            'a = [\'x\', """\nkey = 1\n"""]\n#key = 1\nkey = NEW\n',
        ),
        # else to the end
        ("", "key = NEW\n"),
        ("a = 1\n", "a = 1\nkey = NEW\n"),
        ("a = 1", "a = 1\nkey = NEW\n"),
        ("a = 1;", "a = 1;\nkey = NEW\n"),
        ("#key = 1", "#key = 1\nkey = NEW\n"),
        ("# prose", "# prose\nkey = NEW\n"),
        ("a = 1\r\n", "a = 1\r\nkey = NEW\r\n"),
        ("a = 1\r\nb = 2", "a = 1\r\nb = 2\r\nkey = NEW\r\n"),
    ],
)
def test_a_setting_is_set(text: str, after: str) -> None:
    assert edited(text, PATH, "key", "NEW") == after


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("", ""),
        ("a = 1\n#key = 1", "a = 1\n#key = 1"),
        ("a = 1\nkey = 2 # why\nb = 3\n", "a = 1\n#key = 2 # why\nb = 3\n"),
        ("\tkey = 2", "\t#key = 2"),
        ("key = 1\r\nb = 2\r\n", "#key = 1\r\nb = 2\r\n"),
        ("key = 1\na = 1\nkey = 2\n", "#key = 1\na = 1\n#key = 2\n"),  # else the second would count
        # on a line with others, or over several lines, a comment would take too much or too little
        ("a = 1; key = 2; b = 3", "a = 1;  b = 3"),
        ("a = 1; key = 2 # why", "a = 1; # why"),
        ("key = 2; b = 3", " b = 3"),
        ("key = 2;\nb = 3", "\nb = 3"),
        ("key = 1; key = 2", " "),
        ("a = 1\rkey = 2\rb = 3", "a = 1\r\rb = 3"),
        ("key = [\n 'x'\n]\nb = 3", "\nb = 3"),
        ("key = [\r 'x'\r]\r#b = 3", "\r#b = 3"),
        ('key = """x\ny""" # why\n', "# why\n"),
    ],
)
def test_a_setting_is_no_longer_set(text: str, after: str) -> None:
    assert edited(text, PATH, "key", None) == after


@pytest.mark.parametrize("value", ["1", None])
def test_a_file_that_is_not_understood_is_not_edited(value: str | None) -> None:
    with pytest.raises(Error, match=f'^{PATH}:2: "b" is not followed by "="'):
        edited("key = 1\nb\n", PATH, "key", value)
