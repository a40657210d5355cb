"""The order of modules and their doors, over the syntax trees."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import diffusers.pipelines
import pytest

import guidefold
from guidefold import api

ROOT = Path(guidefold.__file__).parent
PROJECT = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
LAYERS = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
WINGS = LAYERS[::-1]
"""From the ground up; ``make check`` holds their order and their doors by import-linter."""

FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
OWN = [name for name in FILES if not name.startswith("demo/")]  # the demo trains its own teacher


def each(names: Iterable[str]) -> Callable[[Callable[[str], None]], Callable[[], None]]:
    """Make a check of one file a test of several, which names every file that fails."""

    def over(check: Callable[[str], None]) -> Callable[[], None]:
        def test() -> None:
            offenders = []
            for name in names:
                try:
                    check(name)
                except AssertionError as error:
                    offenders.append(f"{name}: {error}")
            if offenders:
                pytest.fail("\n".join(offenders), pytrace=False)

        test.__name__ = check.__name__
        return test

    return over


every_file = each(FILES)
SINGLE = ("session", "api", "VERBOSITIES", "__version__")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported module, with each imported name behind it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where they lead"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the last part of what is called; methods begin with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield f".{node.func.attr}", node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node.func.id, node


def texts(call: ast.Call) -> list[str]:
    """Text given to a call in so many words."""
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    return [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]


def test_the_folder_reads_as_a_list_of_wings() -> None:
    entries = {path.name.removesuffix(".py") for path in ROOT.iterdir()}
    shown = {name for name in entries if not name.startswith("__") and name != "py.typed"}
    assert shown == set(WINGS)
    assert len(WINGS) == len(set(WINGS)) <= 16


@every_file
def test_a_file_can_be_read_in_one_sitting(name: str) -> None:
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 350


def test_functions_are_short() -> None:
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    )
    count = len(lengths)
    assert lengths[count // 2] <= 10
    assert lengths[count * 9 // 10] <= 30
    assert lengths[-1] <= 60


@every_file
def test_wings_are_entered_by_their_doors(name: str) -> None:
    """What the contracts of import-linter hold, seen from the importing line."""
    wing = name.split("/", 1)[0]
    for module in imports(TREES[name]):
        package, *rest = module.split(".")
        if package == "guidefold" and rest[0] not in (wing, "bench", "cli", *SINGLE):
            assert len(rest) <= 2, f"{name} imports {module}"


@every_file
def test_only_the_adapter_imports_peft(name: str) -> None:
    assert name.startswith("lora/") or not any(m.startswith("peft") for m in imports(TREES[name]))


@every_file
def test_no_pickle_and_no_remote_code(name: str) -> None:
    for module in imports(TREES[name]):
        assert module.split(".")[0] not in {"pickle", "joblib", "dill", "shelve", "marshal"}
    for called, call in calls(TREES[name]):
        assert called not in {"eval", "exec"}
        words = {keyword.arg for keyword in call.keywords}
        assert not words & {"trust_remote_code", "custom_pipeline", "weights_only"}
        whole = ast.unparse(call.func)
        assert whole not in {"torch.load", "torch.save"}


PUBLIC_AFTER_ALL = {"_asdict", "_replace"}  # of named tuples
# A base class is needed when its module is imported.
BASE_CLASSES = {"bench/memory/memory_watch.py": {"torch.utils._python_dispatch"}}
# Of the last four only an attribute is private.
LOOKED_UP = {
    ".".join(texts(call))
    for called, call in calls(TREES["ground/compat.py"])
    if called == "_lookup"
} - {
    "diffusers.DiffusionPipeline",
    "diffusers.ModelMixin",
    "huggingface_hub.errors.HfHubHTTPError",
    "torch.ops",
}


def defined(tree: ast.AST) -> set[str]:
    """Functions, classes, variables and attributes that code gives a name."""
    named = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            named.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            named.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            named |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return named


def insides(tree: ast.AST) -> Iterator[str]:
    """Private names of other libraries that code reads, and sources that it looks into."""
    own = defined(tree) | PUBLIC_AFTER_ALL
    for module in imports(tree):
        if module in LOOKED_UP:
            yield module
        if not module.startswith(("guidefold", "__")) and "._" in module:
            yield module.rsplit(".", 1)[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own:
            yield node.attr
        if isinstance(node, ast.Attribute) and node.attr == "__bases__":
            yield node.attr
    for called, call in calls(tree):
        if called in {".getsource", "getsource"}:
            yield called
        if ast.unparse(call.func).startswith("vars(") and called == ".pop":
            yield "vars.pop"
        if called in {"getattr", "hasattr", "setattr", "delattr", ".pop"}:
            yield from (text for text in texts(call) if private(text) and text not in own)


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@each([name for name in FILES if name != "ground/compat.py"])
def test_only_compat_knows_the_insides_of_other_libraries(name: str) -> None:
    found = set(insides(TREES[name])) - BASE_CLASSES.get(name, set())
    assert not found, found


def seam_patches(tree: ast.AST) -> Iterator[str]:
    """Places that put something in the place of a ``step`` or a ``forward``."""
    for called, call in calls(tree):
        if called in {"setattr", "._replace", ".__setattr__"}:
            yield from {"step", "forward"} & set(texts(call))
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        for target in targets:
            if isinstance(target, ast.Attribute) and target.attr in {"step", "forward"}:
                own = isinstance(target.value, ast.Name) and target.value.id == "self"
                if target.attr == "forward" or not own:
                    yield target.attr


@every_file
def test_only_capture_stands_at_the_seam_of_diffusers(name: str) -> None:
    found = set(seam_patches(TREES[name]))
    assert found == ({"step", "forward"} if name == "listen/listener.py" else set())


WRITES = {
    ".write_text",
    ".write_bytes",
    ".save_pretrained",
    ".touch",
    ".writelines",
    ".dump",
    ".tofile",
    "save_file",
    ".save_file",
    ".save_model",
    ".rename",
}


def writes(tree: ast.AST) -> Iterator[str]:
    for called, call in calls(tree):
        if called in WRITES:
            yield called
        if called in {"open", ".open"} and any(set(mode) & set("wax+") for mode in modes(call)):
            yield called
        if called == ".save" and ast.unparse(call.args[0]) != "buffer":
            yield called


def modes(call: ast.Call) -> list[str]:
    return [text for text in texts(call) if set(text) <= set("rwaxbt+") and len(text) <= 3]


WRITERS = ("files.py", "tensors.py", "folder.py")


@each(OWN)
def test_only_runs_writes_files(name: str) -> None:
    found = set(writes(TREES[name]))
    assert bool(found) == (name.startswith("run/") and name.split("/")[1] in WRITERS), found


ROOMS_OF_OTHERS = {"deprecated", "controlnet", "pag", "latent_diffusion"}  # kinds, not families
FAMILIES = {p.stem for p in Path(diffusers.pipelines.__path__[0]).iterdir() if p.is_dir()}
FAMILIES |= {"sd15", "sdxl", "sd3", "stablediffusion", "t2i", "gemma", "qwen"}
KNOWING = ("demo/", "bench/")  # the bundled teacher; the architectures that the paper measured


def named_families(tree: ast.AST) -> Iterator[str]:
    """Families of pipelines that code names: in text that it holds, in calls, in its own names."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        said = {
            ast.Name: lambda n: n.id,
            ast.Attribute: lambda n: n.attr,
            ast.Constant: lambda n: n.value if id(n) not in docstrings else "",
            ast.FunctionDef: lambda n: n.name,
            ast.arg: lambda n: n.arg,
        }.get(type(node), lambda n: "")(node)
        words = re.findall(r"[a-z0-9]+", re.sub("([A-Z])", r" \1", str(said)).lower())
        joined = "_".join(words)
        for family in FAMILIES - ROOMS_OF_OTHERS:
            if f"_{family.strip('_')}_" in f"_{joined}_":
                yield family


@each([name for name in FILES if not name.startswith(KNOWING)])
def test_no_branch_for_a_family_of_pipelines(name: str) -> None:
    helps = ("cli/main.py", "cli/bench.py", "run/config.py")  # their texts name the presets
    presets = {"sd15", "sdxl", "sd3"} if name in helps else set()
    assert set(named_families(TREES[name])) <= presets


def test_the_mathematics_of_the_loss_knows_no_settings() -> None:
    assert not any(module.startswith("guidefold") for module in imports(TREES["train/loss.py"]))


@every_file
def test_no_module_is_named_for_nothing(name: str) -> None:
    assert Path(name).stem not in {"utils", "util", "helpers", "common", "misc", "base"}


def public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Public functions and classes, and the public methods of those."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


@every_file
def test_what_is_public_has_a_docstring(name: str) -> None:
    assert ast.get_docstring(TREES[name])
    silent = [node.name for node in public(TREES[name].body) if not ast.get_docstring(node)]
    assert silent == []


def test_the_api_exports_what_it_imports_but_for_what_its_own_class_needs() -> None:
    tree = TREES["api.py"]
    imported = {module.rsplit(".", 1)[1] for module in imports(tree) if "guidefold" in module}
    defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert defined <= set(api.__all__) <= imported | defined
    assert imported - used <= set(api.__all__)
    assert all(hasattr(api, name) for name in api.__all__)


def test_a_check_of_each_file_names_all_that_fail() -> None:
    """The control."""

    @each(["one", "two", "three"])
    def check(name: str) -> None:
        assert name == "two"

    with pytest.raises(pytest.fail.Exception, match=r"one: .*\n(.*\n)*three: "):
        check()


def test_the_checks_see_what_they_look_for() -> None:
    """The control: each finds its case in a few lines of wrong code."""
    wrong = ast.parse(
        "import peft\nfrom guidefold import cli\n"
        "scheduler.step = f\nmodule.forward = f\nsetattr(unet, 'forward', f)\n"
        "path.open('w')\nopen(p, mode='ab')\npath.write_text(t)\npicture.save(path)\nsave_file(t)\n"
        "path.open()\npath.open('rb')\npicture.save(buffer, 'PNG')\nwrite_text(path, t)\n"
    )
    branch = ast.parse("if 'flux' in name.lower(): pass\nif kind == 'WanPipeline': pass")
    assert sorted(named_families(branch)) == ["flux", "wan"]
    assert list(imports(wrong)) == ["peft", "guidefold.cli"]
    assert sorted(seam_patches(wrong)) == ["forward", "forward", "step"]
    assert sorted(writes(wrong)) == [".open", ".save", ".write_text", "open", "save_file"]
    foreign = ast.parse(
        "from torch._subclasses.fake_tensor import F\n"
        "from accelerate.tracking import LOGGER_TYPE_TO_CLASS\n"
        "model._hf_hook\ngetattr(model, '_orig_mod')\n"
        "inspect.getsource(model)\nError.__bases__\nvars(model).pop(name)\nvalues._asdict()\nmodel.public"
    )
    known = {"torch._subclasses.fake_tensor", "_hf_hook", "_orig_mod", ".getsource", "__bases__"}
    known |= {"accelerate.tracking.LOGGER_TYPE_TO_CLASS", "vars.pop"}
    assert set(insides(foreign)) == known
