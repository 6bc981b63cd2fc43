"""The build of another commit: what is refused, how it is made and removed, and in which order it is measured."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as command
from tests.benchmarks.against import build_of, different, merged, resolve, turns, units, worktree
from tests.benchmarks.harness import check_build
from tests.benchmarks.measure import Sample, Spread, ratios
from tests.benchmarks.modes import modes
from tests.benchmarks.report import tables
from tests.benchmarks.servers import Build, chosen
from tests.machine import need_git
from tests.matrix.environments import Failed
from tests.matrix.processes import communicate

(LOCKSTEP,) = modes(["lockstep"], seconds=1)
BUILD = Build("1a2b3c4", Path("/b/bin/python"), Path("/b/path"), Path("/b/quart_openai_sse"))
GIN, OURS, BARE = chosen(["gin", "ours-uvicorn", "bare-uvicorn"])

# Builds the package as it lies there, with nothing but the standard library.
PYPROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = """\
from zipfile import ZipFile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    with ZipFile(f"{folder}/quart_openai_sse-1-py3-none-any.whl", "w") as wheel:
        wheel.write("quart_openai_sse/__init__.py")
        info = "quart_openai_sse-1.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: quart-openai-sse\\nVersion: 1\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return "quart_openai_sse-1-py3-none-any.whl"
"""


def git(checkout: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Ann", "-c", "user.email=ann@example.com", "-c", "commit.gpgsign=false")
    done = subprocess.run(("git", "-C", checkout, *who, *arguments), capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with two commits, of which the first can't be installed."""
    need_git()
    folder = tmp_path / "checkout"
    (folder / "quart_openai_sse").mkdir(parents=True)
    package = folder / "quart_openai_sse" / "__init__.py"
    package.write_text("before = True\n", "utf-8")
    git(tmp_path, "init", "--quiet", str(folder))
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "No pyproject.toml")
    (folder / "pyproject.toml").write_text(PYPROJECT, "utf-8")
    (folder / "backend.py").write_text(BACKEND, "utf-8")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "One that can be installed")
    return folder


def worktrees(checkout: Path) -> list[str]:
    return [
        line for line in git(checkout, "worktree", "list", "--porcelain").splitlines() if line.startswith("worktree")
    ]


class TestResolving:
    """What can be compared, and what is refused in one sentence."""

    async def test_a_name_is_the_hash_of_its_commit(self, checkout: Path) -> None:
        assert await resolve("HEAD~1", checkout) == git(checkout, "rev-parse", "HEAD~1")

    @pytest.mark.parametrize("name", ["HEAD~9", "no-such-branch", "--help", ""])
    async def test_an_unknown_commit_is_refused(self, checkout: Path, name: str) -> None:
        with pytest.raises(Failed, match=f"there is no commit '{name}'"):
            await resolve(name, checkout)

    @pytest.mark.parametrize("name", ["quart_openai_sse/__init__.py", "quart_openai_sse/new.py", "pyproject.toml"])
    async def test_changes_of_the_package_that_are_not_committed_are_refused(self, checkout: Path, name: str) -> None:
        (checkout / name).write_text("changed = True\n", "utf-8")
        with pytest.raises(Failed, match=f"not committed: {name}"):
            await resolve("HEAD~1", checkout)

    async def test_other_changes_are_not(self, checkout: Path) -> None:
        (checkout / "notes.txt").write_text("", "utf-8")
        assert await resolve("HEAD", checkout)

    async def test_a_folder_within_another_repository_is_no_checkout(self, checkout: Path, tmp_path: Path) -> None:
        for folder in (checkout / "quart_openai_sse", tmp_path):
            with pytest.raises(Failed, match="needs a git checkout"):
                await resolve("HEAD", folder)

    async def test_without_git_it_says_so(self, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(Failed, match="needs git"):
            await resolve("HEAD", checkout)

    @pytest.mark.parametrize("options", [["--against", "no-such-commit"], ["--against", "HEAD", "--only", "gin,peers"]])
    def test_the_command_ends_with_a_sentence(
        self, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["benchmarks", *options])
        assert command.main() == 2
        said = capsys.readouterr()
        assert said.err.startswith("It can't be run: ")
        assert len(said.err.splitlines()) == 1
        assert said.out == ""


class TestBuilding:
    """The worktree and the environment, and that nothing of them is left."""

    async def test_a_worktree_is_there_and_is_removed(self, checkout: Path, tmp_path: Path) -> None:
        async with worktree("HEAD~1", tmp_path, checkout) as tree:
            assert not (tree / "pyproject.toml").exists()
            assert len(worktrees(checkout)) == 2
        assert not tree.exists()
        assert len(worktrees(checkout)) == 1

    @pytest.mark.parametrize("error", [Failed, asyncio.CancelledError])
    async def test_an_error_or_a_signal_removes_it_with_what_was_written_there(
        self, checkout: Path, tmp_path: Path, error: type[BaseException]
    ) -> None:
        async def use() -> None:
            async with worktree("HEAD", tmp_path, checkout) as tree:
                (tree / "build").write_text("", "utf-8")
                raise error

        with pytest.raises(error):
            await use()
        assert not (tmp_path / "tree").exists()
        assert len(worktrees(checkout)) == 1

    @pytest.mark.slow
    async def test_a_build_is_imported_from_its_own_environment(self, checkout: Path, tmp_path: Path) -> None:
        async with build_of("HEAD", [], tmp_path, python=Path(sys.executable), checkout=checkout) as build:
            assert build.package.is_relative_to(tmp_path / "environment")
            assert (build.package / "__init__.py").read_text("utf-8") == "before = True\n"
            code = "import quart_openai_sse, tests.benchmarks as t; print(quart_openai_sse.__file__, t.__file__)"
            environ = {"PYTHONPATH": str(build.path)}
            status, output, errors = await communicate((build.python, "-c", code), env=environ, cwd=tmp_path)
            assert status == 0, errors
            assert output.decode().split() == [
                str(build.package / "__init__.py"),
                str(build.path / "tests" / "benchmarks" / "__init__.py"),
            ]
        assert len(worktrees(checkout)) == 1

    @pytest.mark.slow
    async def test_a_commit_that_does_not_install_is_a_sentence(self, checkout: Path, tmp_path: Path) -> None:
        label = git(checkout, "rev-parse", "--short", "HEAD~1")
        with pytest.raises(Failed, match=f"^commit {label} does not install:\n"):
            async with build_of("HEAD~1", [], tmp_path, python=Path(sys.executable), checkout=checkout):
                pass
        assert len(worktrees(checkout)) == 1

    def test_pins_are_the_commits_but_for_servers_and_what_it_does_not_name(self) -> None:
        pins = '# Pins.\nQuart==0.21.0\nuvicorn==0.1\na_b==1; python_version < "3.13"\nquart-openai-sse==0.1.0\n'
        installed = {"quart": "0.22.0", "uvicorn": "0.40", "A.B": "2", "h11": "0.16", "quart_openai_sse": "0.1.0"}
        assert merged(pins, installed).splitlines() == [
            "Quart==0.21.0",
            'a_b==1; python_version < "3.13"',
            "quart-openai-sse==0.1.0",
            "uvicorn==0.40",
            "h11==0.16",
        ]

    def test_other_versions_are_named(self) -> None:
        theirs = {"Quart": "0.21.0", "h11": "0.16", "pip": "1", "quart-openai-sse": "1", "aiohttp": "3"}
        ours = {"quart": "0.22.0", "h11": "0.16", "pip": "2", "quart_openai_sse": "2", "hypercorn": "0.18"}
        assert different(theirs, ours) == ("Quart 0.21.0 (here 0.22.0)",)

    @pytest.mark.parametrize(
        ("log", "said"),
        [
            (
                "quart_openai_sse is /a/quart_openai_sse/__init__.py\n",
                "from /a/quart_openai_sse/__init__.py, not from /b",
            ),
            ("INFO ready\n", "from nowhere, not from /b"),
            (
                "quart_openai_sse is /a/__init__.py\nquart_openai_sse is /b/quart_openai_sse/__init__.py\n",
                "from /a/__init__.py, /b/quart_openai_sse/__init__.py, not from /b",
            ),
        ],
        ids=["another", "none", "one of two"],
    )
    def test_a_server_of_another_build_is_not_measured(self, log: str, said: str) -> None:
        check_build("quart_openai_sse is /b/quart_openai_sse/__init__.py\n", BUILD.package)
        with pytest.raises(Failed, match=said):
            check_build(log, BUILD.package)


class TestComparing:
    """Order and ratios."""

    def test_only_servers_with_this_extension_have_a_second_build(self) -> None:
        names = [[each.name for each in unit] for unit in units([GIN, OURS, BARE], BUILD)]
        assert names == [["gin"], ["ours-uvicorn", "ours-uvicorn@1a2b3c4"], ["bare-uvicorn"]]
        assert [server.build for unit in units([GIN, OURS], BUILD) for server in unit] == [None, None, BUILD]
        assert units([GIN, OURS], None) == [(GIN,), (OURS,)]

    def test_builds_alternate_and_each_round_begins_with_another_server(self) -> None:
        pairs = units([GIN, OURS], BUILD)
        orders = [[each.name for each in turns(pairs, number)] for number in range(3)]
        assert orders == [
            ["gin", "ours-uvicorn", "ours-uvicorn@1a2b3c4"],
            ["ours-uvicorn@1a2b3c4", "ours-uvicorn", "gin"],
            ["gin", "ours-uvicorn", "ours-uvicorn@1a2b3c4"],
        ]

    def test_each_has_the_ratio_to_its_own_other_within_a_round(self) -> None:
        figures = [("a", 1, 10), ("a@x", 1, 20), ("a", 2, 30), ("a@x", 2, 20), ("a", 3, 9), ("b", 3, 1), ("b@x", 3, 4)]
        samples = [Sample(server, "lockstep", number, {"cpu": cpu}) for server, number, cpu in figures]
        found = ratios(samples, "lockstep", "cpu", against={"a": "a@x", "b": "b@x"})
        assert found == {"a": Spread(1.0, 0.5, 1.5), "b": Spread(0.25, 0.25, 0.25)}

    def test_the_tables_have_ratios_to_the_other_build_and_to_the_peers(self) -> None:
        cpu = {"gin": 10, "ours-uvicorn": 20, "ours-uvicorn@1a2b3c4": 40}
        cpu |= {"ours-uvicorn+text": 30, "ours-uvicorn+text@1a2b3c4": 50}
        samples = [Sample(server, "lockstep", 1, {"cpu": each}) for server, each in cpu.items()]
        groups = {name: "features" if "+" in name else "reference" if name == "gin" else "ours" for name in cpu}
        pairs = {name: f"{name}@1a2b3c4" for name in ("ours-uvicorn", "ours-uvicorn+text")}
        text = tables(samples, [LOCKSTEP], groups, {}, [], pairs)
        rows = [" ".join(line.split()) for line in text.splitlines() if "ours" in line or "gin" in line]
        assert rows == [
            "CPU µs/event of @1a2b3c4 of gin",
            "gin 10.0 - 1.00 (1.00-1.00)",
            "ours-uvicorn 20.0 0.50 (0.50-0.50) 2.00 (2.00-2.00)",
            "ours-uvicorn@1a2b3c4 40.0 - 4.00 (4.00-4.00)",
            "CPU µs/event of @1a2b3c4 of ours-uvicorn",
            "ours-uvicorn 20.0 0.50 (0.50-0.50) 1.00 (1.00-1.00)",
            "ours-uvicorn@1a2b3c4 40.0 - 1.00 (1.00-1.00)",
            "ours-uvicorn+text 30.0 0.60 (0.60-0.60) 1.50 (1.50-1.50)",
            "ours-uvicorn+text@1a2b3c4 50.0 - 1.25 (1.25-1.25)",
        ]
