"""The wheel, installed into an empty environment: each command works outside the repository."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "pyproject.toml MANIFEST.in README.md CHANGELOG.md CONTRIBUTING.md LICENSE constraints.txt"
)
FOLDERS = "data ddp_helpers"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
OURS = ("DDP_HELPERS", "PYTHON")

pytestmark = [pytest.mark.usefixtures("no_process_left"), pytest.mark.timeout(300)]


def run(*words, cwd, seconds=240):
    """Run a command that knows nothing of this repository."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return subprocess.run(
        [*map(str, words)],
        capture_output=True,
        text=True,
        timeout=seconds,
        cwd=cwd,
        env=plain,
        check=False,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What a clone holds of the package."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES.split():
        shutil.copy(ROOT / name, source)
    for name in FOLDERS.split():
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    return source


@pytest.fixture(scope="module")
def built(source):
    """The sdist, and the wheel built from it, as `python -m build` does it; without network."""
    make = "from setuptools import build_meta; build_meta.build_sdist('dist')"
    done = run(sys.executable, "-c", make, cwd=source)
    assert done.returncode == 0, done.stderr
    (sdist,) = (source / "dist").glob("*.tar.gz")
    wheel = "-m pip wheel --quiet --no-build-isolation --no-deps --no-index -w dist".split()
    done = run(sys.executable, *wheel, sdist, cwd=source)
    assert done.returncode == 0, done.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    return sdist, wheel


def new_environment(folder):
    """A Python that has all that this one has but for the package, and its site-packages."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    done = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    site = Path(done.stdout.strip())
    ours = sysconfig.get_path("purelib"), sysconfig.get_path("platlib")
    # a path in a .pth file comes last, and .pth files there (an editable install) do not count
    (site / "torch.pth").write_text("\n".join(dict.fromkeys(ours)) + "\n")
    return python, site


def install(python, *words):
    offline = "install --quiet --no-deps --no-index --no-build-isolation --force-reinstall"
    pip = ["-m", "pip", "--python", python, *offline.split()]
    done = run(sys.executable, *pip, *words, cwd=python.parent)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def python(built, tmp_path_factory):
    """A Python that has the wheel, and what the wheel depends on from this environment."""
    python, _ = new_environment(tmp_path_factory.mktemp("environment"))
    install(python, built[1])
    return python


@pytest.fixture
def ddp(python, tmp_path):
    """Runs `python -m ddp_helpers WORDS` in an empty folder, and expects exit code 0."""

    def run_command(*words):
        done = run(python, "-m", "ddp_helpers", *words, cwd=tmp_path)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    return run_command


def test_the_sdist_holds_what_the_wheel_is_built_from_and_no_tests(built):
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {*SOURCES.split(), "data/LICENSE-MNIST", "data/README.md"} <= names
    assert not [name for name in names if name.startswith(("tests", "notebooks"))]


def test_the_wheel_holds_each_file_of_the_package_and_the_data_with_its_licence(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    here = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "ddp_helpers").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    data = {
        f"ddp_helpers/_data/{path.relative_to(ROOT / 'data')}"
        for path in (ROOT / "data").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert names == here | data
    assert "ddp_helpers/_data/LICENSE-MNIST" in names


def test_it_is_the_wheel_that_is_imported(python, tmp_path):
    code = """
import sys, ddp_helpers
assert "torch" not in sys.modules and "numpy" not in sys.modules
from ddp_helpers.data import data_root, load_mnist_5k
print(ddp_helpers.__version__, ddp_helpers.__file__, data_root(), len(load_mnist_5k()))
"""
    done = run(python, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    version, file, data, digits = done.stdout.split()
    assert version == VERSION
    environment = str(python.parent.parent)
    assert file.startswith(environment)
    assert data.startswith(environment)
    assert digits == "4000"


def test_new_starts_without_torch_and_numpy(python, tmp_path):
    words = "-X importtime -m ddp_helpers new mine.py".split()
    done = run(python, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "ddp_helpers.cli" in loaded
    assert not {"torch", "numpy", "matplotlib"} & loaded


def test_check(ddp):
    assert "Linux" in ddp("check")


def test_run(ddp, tmp_path):
    (tmp_path / "hello.py").write_text("import os\ndef main():\n    print(os.environ['RANK'])\n")
    assert sorted(ddp("run", "hello.py:main", "-n", 2).splitlines()) == ["[rank 0] 0", "[rank 1] 1"]


def test_a_new_copy_trains_on_the_data_of_the_wheel(ddp, python, tmp_path):
    ddp("new", "train.py", "--recipe", "ema")
    assert f'DATA = Path("{python.parent.parent}' in (tmp_path / "train.py").read_text()
    done = run(python, *"train.py --epochs 1 --global-batch-size 400".split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "best accuracy" in done.stdout
    ddp("new", "one.py", "--template", "single_process")
    done = run(python, "one.py", "--epochs", 1, cwd=tmp_path)
    assert "of 1000 right" in done.stdout, done.stderr
    ddp("new", "lm.py", "--template", "starter_lm")
    path = re.search(r'^DATA = Path\("(.*)"\)', (tmp_path / "lm.py").read_text(), re.MULTILINE)[1]
    assert Path(path).read_text().startswith("Chapter 1")


def test_train(ddp, tmp_path):
    said = ddp("train", "-n", 2, "--epochs", 1)
    assert re.search(r"^accuracy [\d.]+% on the held-out digits after 1 epoch, 2 ranks", said, re.M)
    assert (tmp_path / "runs" / "demo" / "training.png").stat().st_size > 1000


def test_bench(ddp, tmp_path):
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "def make():\n"
        "    data = torch.randn(64, 8), torch.randint(2, (64,))\n"
        "    return torch.nn.Linear(8, 2), torch.utils.data.TensorDataset(*data)\n"
    )
    short = "--model -n 1 --steps 2 --rounds 1 --batch-size 4 --no-advice".split()
    said = ddp("bench", "net.py:make", *short)
    assert re.search(r"^1 rank: ", said, re.M)
    assert (tmp_path / "runs" / "bench" / "scaling.png").stat().st_size > 1000


def test_plan(ddp):
    said = ddp("plan", "--link", "nvlink", "--parameters", "25.6e6", "--ms-per-sample", "1.6")
    assert re.search(r"^ +8 .* compute$", said, re.M)


# ---- it may go without a trace


def test_after_it_is_uninstalled_nothing_is_left(built, tmp_path):
    python, site = new_environment(tmp_path)
    before = set(site.iterdir())
    install(python, built[1])
    assert site / "ddp_helpers" in site.iterdir()
    words = "uninstall --quiet --yes ddp_helpers".split()
    done = run(sys.executable, "-m", "pip", "--python", python, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(site.iterdir()) == before


def test_other_programs_run_when_half_of_it_is_gone(built, source, tmp_path):
    python, site = new_environment(tmp_path / "environment")
    install(python, built[1])
    shutil.rmtree(site / "ddp_helpers")
    alone = run(python, "-c", "import torch", cwd=tmp_path)
    assert (alone.returncode, alone.stderr) == (0, "")
    clone = tmp_path / "clone"
    shutil.copytree(source, clone, ignore=shutil.ignore_patterns("dist", "build"))
    install(python, "--editable", clone)
    clone.rename(tmp_path / "moved")
    alone = run(python, "-c", "import torch", cwd=tmp_path)
    assert (alone.returncode, alone.stderr) == (0, "")


def test_sanitize(ddp, python, tmp_path):
    (tmp_path / "alone.py").write_text(
        "import torch.distributed as dist\n"
        "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
        "print(dist.init_process_group.__code__.co_filename)\n"
    )
    assert str(python.parent.parent) in ddp("sanitize", python, "alone.py")
