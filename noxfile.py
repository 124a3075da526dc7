import os
import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.sessions = ["tests", "lint", "typing", "wheel"]

ROOT = Path(__file__).parent
SOURCES = [file for top in ("onnxq", "passes", "cli") for file in (ROOT / top).rglob("*.py")]
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")


def install(session, group, package="."):
    """The package as users get it, with a group of tools."""
    leftovers = ROOT / "build" / "lib"  # setuptools packs what it finds there, deleted or not
    shutil.rmtree(leftovers, ignore_errors=True)
    constraints = "-c", str(ROOT / "constraints-dev.txt")
    session.install(package, *nox.project.dependency_groups(PYPROJECT, group), *constraints)
    shutil.rmtree(leftovers, ignore_errors=True)


@nox.session
def tests(session):
    """All tests, the slow ones included, on all cores; arguments after -- go to pytest."""
    install(session, "tests", ".[torch]")
    parallel = "-n", "auto", "--dist", "worksteal"
    session.run("pytest", *parallel, *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
@nox.parametrize("version", ["1.20.1", "1.23.2", "1.24.1", "newest"])
def targets(session, version):
    """Files for an older onnxruntime, run by it alone; takes minutes for each."""
    install(session, "tests")
    folder = Path(session.create_tmp()).resolve()
    files = folder / "files"
    shutil.rmtree(files, ignore_errors=True)
    files.mkdir()
    target = "1.24" if version == "newest" else version.rpartition(".")[0]
    write, read = (ROOT / "tests" / "targets" / f"{name}.py" for name in ("write", "read"))
    with session.chdir(folder):  # away from the sources, which would stand in for the package
        session.run("python", str(write), target, str(files))
    session.run("python", "-m", "venv", "--clear", str(folder / "alone"))
    scripts = folder / "alone" / ("Scripts" if os.name == "nt" else "bin")
    wanted = "onnxruntime" if version == "newest" else f"onnxruntime=={version}"
    session.run(str(scripts / "pip"), "install", "--quiet", wanted, external=True)
    session.run(str(scripts / "python"), str(read), str(files), external=True)


@nox.session
def lint(session):
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typing(session):
    """Away from the sources, where mypy would find the half of the package that is there."""
    install(session, "typing", ".[torch]")
    with session.chdir(session.create_tmp()):
        config = str(ROOT / "pyproject.toml")
        said = session.run("mypy", "--config-file", config, "-p", "onnxq", silent=True)
    checked = int(re.search(r"in (\d+) source files", said)[1])
    if checked != len(SOURCES):
        session.error(f"mypy checked {checked} of {len(SOURCES)} files")


@nox.session
def wheel(session):
    """What is uploaded: built through the sdist, installed alone and run away from the sources."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "wheel"))
    folder = Path(session.create_tmp()).resolve()
    shutil.rmtree(folder / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(folder / "dist"), silent=True)
    (built,) = (folder / "dist").glob("*.whl")
    session.run("check-wheel-contents", "--toplevel", "onnxq", str(built))
    session.run("python", "-m", "venv", "--clear", str(folder / "alone"))
    scripts = folder / "alone" / ("Scripts" if os.name == "nt" else "bin")
    session.run(str(scripts / "pip"), "install", "--quiet", str(built), external=True)
    with session.chdir(folder):
        imports = "import onnxq.passes, onnxq.cli"
        session.run(str(scripts / "python"), "-c", imports, external=True)
        session.run(str(scripts / "onnxq"), "demo", external=True)
