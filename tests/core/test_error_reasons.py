"""ErrorReason in chat.proto has every reason that a tier gives over gRPC, and no other."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import grpc
import pytest

from pixtral.v1 import chat_pb2
from pixtral_core.errors import from_rpc_error

ROOT = Path(__file__).parents[2]
TIERS = ("core", "gateway", "services/encoder", "services/decoder")
PROTO = ROOT / "protos" / "pixtral" / "v1" / "chat.proto"
PREFIX = "ERROR_REASON_"
BASE = "ServingError"
# They pass a reason on that another error has, or that gRPC's code names.
PASSED_ON = re.compile(r"reason|\w+(\.\w+)*\.reason")


def declared() -> set[str]:
    names = set(chat_pb2.ErrorReason.keys()) - {f"{PREFIX}UNSPECIFIED"}
    return {name.removeprefix(PREFIX) for name in names}


@cache
def modules() -> dict[Path, ast.Module]:
    """Those of the tiers, except the gateway's other doors, whose errors have no ErrorInfo."""
    paths = sorted(path for tier in TIERS for path in (ROOT / tier).rglob("*.py"))
    return {
        path: ast.parse(path.read_text("utf-8"))
        for path in paths
        if "api" not in path.parts or path.name.startswith("grpc")
    }


@cache
def constants() -> dict[str, str]:
    """The strings that any module gives a name to."""
    return {
        target.id: node.value.value
        for tree in modules().values()
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


@cache
def parameters() -> dict[str, list[str]]:
    """The arguments that each class of errors is made with, by the name of the class."""
    classes = [
        node
        for tree in modules().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    ]
    found: dict[str, list[str]] = {}
    while new := [
        each
        for each in classes
        if each.name not in found
        and (each.name == BASE or any(ast.unparse(base) in found for base in each.bases))
    ]:
        for each in new:
            made = next((n for n in each.body if getattr(n, "name", "") == "__init__"), None)
            if isinstance(made, ast.FunctionDef):
                found[each.name] = [argument.arg for argument in made.args.args[1:]]
            else:
                found[each.name] = next(
                    found[b] for b in map(ast.unparse, each.bases) if b in found
                )
    return found


def reasons(path: Path) -> Iterator[str]:
    """Fails for a reason that cannot be read in the source."""
    for given in given_reasons(modules()[path], ""):
        if isinstance(given, ast.Name) and given.id in constants():
            yield constants()[given.id]
        elif isinstance(given, ast.Constant) and isinstance(given.value, str):
            yield given.value
        elif not PASSED_ON.fullmatch(ast.unparse(given)):
            line = f"{path.relative_to(ROOT)}:{given.lineno}"
            pytest.fail(f"{line}: write the reason as a string or as a constant's name")


def given_reasons(node: ast.AST, base: str) -> Iterator[ast.expr]:
    """`base` is the class of errors that the surrounding class is one of."""
    for child in ast.iter_child_nodes(node):
        inner = base
        if isinstance(child, ast.ClassDef) and child.name in parameters():
            inner = ast.unparse(child.bases[0])
            yield from defaults(child)
        if isinstance(child, ast.Call):
            called = ast.unparse(child.func).rpartition(".")[2]
            name = base if ast.unparse(child.func) == "super().__init__" else called
            if name in parameters():
                given = dict(zip(parameters()[name], child.args, strict=False))
                given |= {each.arg: each.value for each in child.keywords if each.arg}
                if "reason" in given:
                    yield given["reason"]
        yield from given_reasons(child, inner)


def defaults(made: ast.ClassDef) -> Iterator[ast.expr]:
    for function in made.body:
        if isinstance(function, ast.FunctionDef) and function.name == "__init__":
            arguments = function.args.args
            with_default = arguments[len(arguments) - len(function.args.defaults) :]
            for argument, default in zip(with_default, function.args.defaults, strict=True):
                if argument.arg == "reason":
                    yield default


def foreign() -> set[str]:
    """Those of statuses that are gRPC's own or another server's, whatever their code."""
    nothing = grpc.aio.Metadata()
    return {
        from_rpc_error(grpc.aio.AioRpcError(code, nothing, nothing)).reason
        for code in grpc.StatusCode
        if code is not grpc.StatusCode.OK
    }


def test_every_reason_is_in_the_proto_and_no_other() -> None:
    given = {reason for path in modules() for reason in reasons(path)} | foreign()
    assert sorted(given - declared()) == [], "add these to ErrorReason in chat.proto"
    assert sorted(declared() - given) == [], "nothing gives these: take them out of ErrorReason"


def test_every_reason_says_its_code_and_what_to_do() -> None:
    text = PROTO.read_text("utf-8").split("enum ErrorReason {")[1].split("\n}")[0]
    codes = "|".join([code.name for code in grpc.StatusCode] + ["Any status code"])
    documented = re.findall(rf"((?:^  // .*\n)+)^  {PREFIX}(\w+) = \d+;", text, flags=re.MULTILINE)
    assert {name for _, name in documented} == declared()
    for comment, name in documented:
        words = " ".join(line.strip().removeprefix("// ") for line in comment.splitlines())
        assert re.match(rf"({codes})(, between tiers)?\. ", words), name
        assert words.count(". ") >= 2, f"{name}: when it occurs, and what to do"
