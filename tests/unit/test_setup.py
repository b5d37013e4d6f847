"""The set-up files say the same thing: one install, exact pins."""

import json
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
INSTALL = "-c constraints.txt -e ."


def test_environment_yml_is_python_pip_and_the_same_install():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, rest = environment["dependencies"]
    assert re.fullmatch(r"python=3\.\d+", python)
    assert pip == "pip"
    assert list(rest) == ["pip"]
    assert " ".join(rest["pip"]) == INSTALL


def test_makefile_and_readme_name_that_install():
    makefile = (ROOT / "Makefile").read_text().replace("'", "")
    assert f"pip install --disable-pip-version-check {INSTALL}" in makefile
    # tests and checks of form need more, which a learner is spared
    lab, dev = (re.search(rf"^{name}: *\$\((\w+)\)", makefile, re.M)[1] for name in ("lab", "test"))
    assert (lab, dev) == ("READY", "DEV")
    assert f"pip install {INSTALL}" in (ROOT / "README.md").read_text().replace("'", "")


def test_every_dependency_has_an_exact_pin():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups()
            pins[_normal(name)] = version
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    for dependency in wanted:
        assert _normal(re.match(r"[\w.-]+", dependency)[0]) in pins
    assert pins["torch"] == "2.13.0"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_binder_and_the_dev_container_run_the_same_install():
    binder = ROOT / ".binder"
    lines = [line.split(" ", 1) for line in (binder / "requirements.txt").read_text().splitlines()]
    options = {name: value for name, value in lines if name.startswith("-")}
    # pip reads -c from the folder of the file, and -e from where it is started
    assert (binder / options["-c"]).resolve() == ROOT / "constraints.txt"
    assert options["-e"] == "."
    assert (binder / "runtime.txt").read_text().startswith("python-3.")
    text = (ROOT / ".devcontainer" / "devcontainer.json").read_text()
    code = "\n".join(line for line in text.splitlines() if not line.strip().startswith("//"))
    command = json.loads(code)["postCreateCommand"]
    assert command == f"pip install {INSTALL}"


def test_ci_runs_each_row_of_the_matrix_with_its_python():
    rows = tomllib.loads((ROOT / "tests/matrix/rows.toml").read_text())
    workflow = yaml.safe_load((ROOT / ".github/workflows/matrix.yml").read_text())
    included = workflow["jobs"]["row"]["strategy"]["matrix"]["include"]
    assert {entry["row"]: entry["python"] for entry in included} == {
        name: row["python"] for name, row in rows.items()
    }
