"""What the documentation shows works: Python runs, commands parse, names exist."""

import ast
import re
import shlex
from importlib.metadata import distribution
from pathlib import Path

import pytest

from nnunet_godc import trainers
from nnunet_godc.cli import build_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
# Snippets that need a trained model, data or code around them: their imports are run, the rest is compiled.
FRAGMENTS = ("docs/deployment.md", "docs/metrics.md", "docs/networks.md")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Lines of code, indented or fenced as text of a shell, split into words."""
    text = re.sub(r"^```(?!sh\n|bash\n|\n).*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^(?:    |\$ )?(nnunet-godc .*|nnUNetv2_.*)$", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=name_of)
def test_python_on_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "snippet"}
    for snippet in snippets(page):
        code = compile(snippet, name_of(page), "exec")
        if name_of(page) in FRAGMENTS:
            imports = [node for node in ast.parse(snippet).body if isinstance(node, ast.Import | ast.ImportFrom)]
            code = compile(ast.Module(imports, []), name_of(page), "exec")
        exec(code, namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands_on_a_page_are_understood(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripts = {entry.name for entry in distribution("nnunetv2").entry_points}
    parser, refused = build_parser(), []
    for program, *words in commands(page):
        if program != "nnunet-godc":
            assert program in scripts
            continue
        try:
            parser.parse_args(words)
        except SystemExit as stop:
            if stop.code != 0:  # --help and --version end, too
                refused.append(f"{shlex.join(words)}: {capsys.readouterr().err}")
    assert not refused


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_trainers_on_a_page_exist(page: Path) -> None:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    text = re.sub(r"^class \w+", "", page.read_text(), flags=re.MULTILINE)
    for name in sorted(set(re.findall(r"\bnnUNetTrainer(?:(?!__)\w)*", text))):
        if name not in trainers.__all__ and not name.startswith("nnUNetTrainerMine"):  # the example's own
            assert recursive_find_trainer_class_by_name(name) is not None


def test_links_to_files_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
            generated = page.parent.joinpath(target).name in ("commands.md", "trainers.md")
            assert generated or page.parent.joinpath(target).exists(), f"{name_of(page)}: {target}"
