"""Sizes that keep every file readable in one sitting."""

import ast

import pytest

from tests.house.house import CODE, Module, modules

FUNCTION_LINES = 70
FILE_LINES = 500

EVERYTHING = modules(*CODE, "tests")


@pytest.mark.parametrize("module", EVERYTHING, ids=lambda module: module.place)
def test_a_file_is_read_in_one_sitting(module: Module) -> None:
    lines = len(module.path.read_bytes().splitlines())

    assert lines <= FILE_LINES, f"{module.place} has {lines} lines: split it into a folder of the same name"


@pytest.mark.parametrize("module", EVERYTHING, ids=lambda module: module.place)
def test_a_function_fits_a_screen(module: Module) -> None:
    if "/migrations/versions/" in module.place:
        return  # a migration is a list of statements; its length says nothing

    long = [
        f"{module.place}:{node.lineno} {node.name} has {length} lines"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
    ]

    assert not long, "\n".join(long)
