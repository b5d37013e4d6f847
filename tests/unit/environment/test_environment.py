"""Each source of facts is faked: made-up /proc, cgroup and /dev trees, a made-up nvidia-smi."""

import dataclasses
import json
import math
import os
import re
import resource
import socket
import subprocess
import sys
import time
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_helpers.environment import Check, EnvironmentReport, check_environment, facts, nvidia
from ddp_helpers.environment import check as env
from ddp_helpers.environment.report import MARKS

GIB = 1024**3
# fmt: off
ROWS = [
    "Linux", "Python", "PyTorch", "GPUs", "Backends", "CPU cores", "OMP_NUM_THREADS", "Memory",
    "/dev/shm", "Open files", "Host name", "Loopback", "Network interfaces", "Free port",
    "Leftover variables",
]
VARIABLES = [
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC_RUN_ID", "SLURM_PROCID", "SLURM_NTASKS", "OMPI_COMM_WORLD_RANK",
    "OMP_NUM_THREADS", "TORCH_DISTRIBUTED_DEBUG", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME",
    "CUDA_VISIBLE_DEVICES",
]
# fmt: on

BANNER = "| NVIDIA-SMI 560.35.03   Driver Version: 560.35.03   CUDA Version: 12.6     |"
NEW_BANNER = "| NVIDIA-SMI 610.43.02   KMD Version: 610.43.02   CUDA UMD Version: 13.3     |"
TWO_A100 = "NVIDIA A100-SXM4-40GB, 40960\nNVIDIA A100-SXM4-40GB, 40960"
TOPO = """\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m
GPU0\t X \tNV2\tSYS\tPIX\t0-23\t0
GPU1\tNV2\t X \tSYS\tSYS\t0-23\t0
GPU2\tSYS\tSYS\t X \tSYS\t24-47\t1
NIC0\tPIX\tSYS\tSYS\t X \t

Legend:

  X    = Self
"""


@dataclasses.dataclass
class Machine:
    """A healthy machine without a GPU, made of files; a test breaks one thing."""

    root: Path
    patch: pytest.MonkeyPatch

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def nvidia_smi(self, gpus: str = TWO_A100, banner: str = BANNER, code: int = 0) -> None:
        self.write("gpus", gpus)
        self.write("banner", banner)
        self.write("topo", TOPO)
        script = f'#!/bin/sh\ncd {self.root}\ncase "$1" in --query-gpu*) cat gpus;; '
        script += f"topo) cat topo;; *) cat banner;; esac\nexit {code}\n"
        self.write("bin/nvidia-smi", script)
        (self.root / "bin/nvidia-smi").chmod(0o755)

    def gpu_files(self) -> None:
        self.write("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64")
        self.write("dev/nvidia0", "")

    def torch(self, version: str, cuda: str | None, hip: str | None = None) -> None:
        self.patch.setattr(facts, "torch_build", lambda: (version, cuda, hip))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for module in (facts, nvidia):
        monkeypatch.setattr(module, "PROC", tmp_path / "proc")
        monkeypatch.setattr(module, "DEV", tmp_path / "dev")
    monkeypatch.setattr(facts, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(facts, "hostname", lambda: "localhost")
    monkeypatch.setattr(facts, "affinity", lambda: 8)
    monkeypatch.setattr(facts, "shm", lambda: (8 * GIB, 8 * GIB))
    monkeypatch.setattr(facts, "open_files", lambda: (1024, 4096))
    monkeypatch.setattr(facts, "interfaces", lambda: {"lo": "IPv4", "eth0": "IPv4 IPv6"})
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    if Path("/usr/bin/nvidia-smi").exists():
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    machine = Machine(tmp_path, monkeypatch)
    machine.write("proc/self/cgroup", "0::/\n")
    machine.write("proc/meminfo", f"MemTotal: {16 * 2**20} kB\nMemAvailable: {12 * 2**20} kB\n")
    machine.write("dev/null", "")
    machine.torch("2.13.0+cpu", None)
    return machine


def raises(error):
    def source(*_args, **_kwargs):
        raise error

    return source


# ------------------------------------------------------------------ the report


def test_a_healthy_machine_passes_every_row(machine):
    report = check_environment()
    assert [check.name for check in report.checks] == ROWS
    assert {check.name: check.value for check in report.checks if check.status != "pass"} == {}
    assert report["GPUs"].value == "none, and that is fine: gloo runs on the CPU"
    assert report["CPU cores"].value == "8 cores"
    assert report["Memory"].value == "12 GiB free of 16 GiB"


def test_real_run_on_this_machine_has_no_fail_and_is_quick():
    import torch  # noqa: F401  (its import is not the check's time)

    check_environment()
    start = time.monotonic()
    report = check_environment()
    assert time.monotonic() - start < 2
    assert [check for check in report.checks if check.status == "fail"] == []
    unknown = [c.name for c in report.checks if c.value.startswith("could not tell")]
    assert unknown == []


def test_import_is_light_and_the_check_never_initialises_cuda():
    code = (
        "import sys, ddp_helpers.environment.check as e; "
        "assert not {'torch', 'psutil', 'matplotlib'} & set(sys.modules); "
        "e.check_environment(); e.default_nprocs(); import torch; "
        "assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_two_runs_print_the_same(machine):
    assert str(check_environment()) == str(check_environment())


# fmt: off
SOURCES = [
    (module, name)
    for module, names in (
        (facts, (
            "system", "python", "torch_build", "backends", "cpu_quota", "affinity", "memory",
            "shm", "open_files", "hostname", "resolve", "is_local", "loopback", "free_port",
            "interfaces",
        )),
        (nvidia, ("look", "_nvidia_smi")),
    )
    for name in names
]
# fmt: on


@pytest.mark.parametrize(("module", "source"), SOURCES, ids=[name for _, name in SOURCES])
@pytest.mark.parametrize("error", [OSError("broken on purpose"), ValueError("broken on purpose")])
def test_a_broken_source_is_a_row_and_never_an_exception(
    machine, monkeypatch, module, source, error
):
    monkeypatch.setattr(module, source, raises(error))
    report = check_environment()
    broken = [check for check in report.checks if check.status != "pass"]
    assert [check.name for check in report.checks] == ROWS
    assert broken
    assert all(check.advice for check in broken)
    if source not in {"is_local", "cpu_quota"}:  # these two have a plain answer as well
        assert any("broken on purpose" in check.value for check in broken)


def test_could_not_tell_names_the_reason(machine, monkeypatch):
    monkeypatch.setattr(facts, "memory", raises(KeyError("MemAvailable")))
    row = check_environment()["Memory"]
    assert (row.status, row.value) == (
        "warn",
        "could not tell, because KeyError: 'MemAvailable'",
    )


def test_a_value_of_many_lines_becomes_one(machine, monkeypatch):
    monkeypatch.setattr(facts, "memory", raises(ValueError("first line\n\n\tsecond line")))
    assert check_environment()["Memory"].value.endswith("ValueError: first line second line")


def test_text_has_words_and_advice_and_is_ascii():
    report = EnvironmentReport(
        (
            Check("Host name", "fail", "'caf\u00e9' is odd", "Do " + "this and that " * 20),
            Check("X", "pass", "fine"),
        )
    )
    text = str(report)
    assert text.isascii()
    assert text == repr(report)
    lines = text.splitlines()
    assert lines[0] == "fail  Host name  'caf\\xe9' is odd"
    assert lines[1].startswith("      -> Do this")
    assert lines[2].startswith("         ")
    assert lines[-2:] == ["pass  X          fine", "1 pass, 0 warn, 1 fail"]
    assert max(map(len, lines)) <= 100


def test_text_keeps_a_command_on_one_line():
    command = "`pip install torch --index-url https://download.pytorch.org/whl/cpu`"
    report = EnvironmentReport((Check("X", "warn", "v", f"{'so ' * 25}{command}. Then go on."),))
    assert sum(command in line for line in str(report).splitlines()) == 1


def test_row_by_name_and_a_clear_error_for_a_wrong_one():
    report = EnvironmentReport((Check("A", "pass", "1"), Check("B", "warn", "2", "do")))
    assert report["B"].value == "2"
    with pytest.raises(KeyError, match=r"no row is called 'C'; the rows are: A, B"):
        report["C"]


def test_records_are_frozen():
    check = Check("A", "pass", "1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        check.status = "fail"
    with pytest.raises(dataclasses.FrozenInstanceError):
        EnvironmentReport((check,)).checks = ()


checks = st.builds(
    Check, st.text(), st.sampled_from(["pass", "warn", "fail"]), st.text(), st.text()
)


@given(st.lists(checks).map(tuple))
def test_ok_is_exactly_no_fail_and_the_report_survives_json_text_and_html(rows):
    report = EnvironmentReport(rows)
    assert report.ok == ("fail" not in [row.status for row in rows])
    back = json.loads(report.to_json())
    assert back == report.to_dict()
    assert tuple(Check(**row) for row in back["checks"]) == rows
    assert str(report).isascii()
    without_our_tags = re.sub(
        r"</?(table|caption|tbody|tr|td|th|span|div|code)( [^<>]*)?>", "", report._repr_html_()
    )
    assert not set("<>") & set(without_our_tags)


def test_html_escapes_and_marks_by_word_symbol_and_colour():
    nasty = "<script>alert('x')</script>"
    page = EnvironmentReport(
        (
            Check(nasty, "fail", f"{nasty} & `{nasty}`", f"run `{nasty}`"),
            Check("b", "warn", "v", "a"),
            Check("c", "pass", "v"),
        )
    )._repr_html_()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 4
    assert re.search(r"run <code[^>]*>&lt;script&gt;", page)
    for word, symbol in (("fail", "&#10007;"), ("warn", "&#9650;"), ("pass", "&#10003;")):
        assert re.search(rf"{re.escape(symbol)}</span>{word}</td>", page)
    assert "background" not in page  # the page's own, light or dark


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("status", ["pass", "warn", "fail"])
@pytest.mark.parametrize("page", ["#ffffff", "#111111"])
def test_marks_can_be_seen_on_light_and_on_dark_pages(status, page):
    # 3:1 is what WCAG 2.1 asks of symbols (1.4.11); the words take the page's own colour
    low, high = sorted((luminance(MARKS[status][0]), luminance(page)))
    assert (high + 0.05) / (low + 0.05) >= 3


# ------------------------------------------------------------------ exit code


def test_main_check_exits_1_on_a_fail_and_prints_json(machine, capsys):
    machine.patch.setattr(facts, "torch_build", raises(ModuleNotFoundError("no", name="torch")))
    assert env.main_check(as_json=True) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is False
    assert [row["name"] for row in data["checks"]] == ROWS


def test_main_check_exits_0_on_warnings_and_prints_text(machine, capsys):
    machine.patch.setattr(facts, "affinity", lambda: 1)
    assert env.main_check(as_json=False) == 0
    assert "warn  CPU cores           1 core\n      -> The ranks take turns" in (
        capsys.readouterr().out
    )


# ------------------------------------------------------------------ system, Python, torch


def test_linux_and_python_rows(machine):
    machine.patch.setattr(facts, "system", lambda: ("Linux", "5.15.1-microsoft-standard", "x86_64"))
    assert check_environment()["Linux"].value == "kernel 5.15.1, x86_64, WSL2"
    machine.patch.setattr(facts, "system", lambda: ("Darwin", "24.1", "arm64"))
    machine.patch.setattr(facts, "python", lambda: (3, 9, 18))
    report = check_environment()
    assert report["Linux"].status == report["Python"].status == "fail"
    assert "WSL2" in report["Linux"].advice
    assert "3.11" in report["Python"].advice


def test_oldest_python_is_the_one_the_package_asks_for(machine):
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">={}.{}".format(*env.PYTHON_MIN)
    machine.patch.setattr(facts, "python", lambda: (3, 11, 0))
    assert check_environment()["Python"].status == "pass"
    machine.patch.setattr(facts, "python", lambda: (3, 10, 14))
    row = check_environment()["Python"]
    assert (row.status, row.value) == ("fail", "3.10.14")
    assert row.advice == "Use Python 3.11 or newer."


def test_missing_torch_says_how_to_install_it(machine):
    machine.patch.setattr(facts, "torch_build", raises(ModuleNotFoundError("no", name="torch")))
    row = check_environment()["PyTorch"]
    assert (row.status, row.value) == ("fail", "not installed")
    assert "pip install torch --index-url https://download.pytorch.org/whl/cpu" in row.advice


def test_missing_torch_for_real(tmp_path):
    # an interpreter that cannot see any installed package
    code = (
        f"import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]; "
        f"sys.path.insert(0, {str(Path(env.__file__).parents[2])!r}); "
        "import ddp_helpers.environment.check as e; "
        "assert e.default_nprocs() == 2; print(e.main_check(True), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.stderr.strip() == "1"
    rows = {row["name"]: row for row in json.loads(done.stdout)["checks"]}
    assert rows["PyTorch"]["value"] == "not installed"
    assert rows["Backends"]["status"] == rows["Network interfaces"]["status"] == "warn"


@pytest.mark.parametrize(
    "error", [OSError("libcudart.so.13: no such file"), ModuleNotFoundError("x", name="numpy")]
)
def test_torch_that_does_not_load(machine, error):
    machine.patch.setattr(facts, "torch_build", raises(error))
    row = check_environment()["PyTorch"]
    assert row.status == "fail"
    assert "does not load" in row.value
    assert "pip uninstall" in row.advice


@pytest.mark.parametrize(
    ("addresses", "file", "named"),
    [(2**29, math.inf, "`ulimit -v` is 524288 KiB"), (math.inf, 2**19, "`ulimit -f` is 512 KiB")],
)
def test_limits_below_which_torch_does_not_load(machine, addresses, file, named):
    machine.patch.setattr(facts, "limits", lambda: (addresses, file))
    with pytest.raises(OSError, match=named):
        facts.check_before_torch()
    assert env.check_torch(nvidia.Findings())[0] == "fail"
    machine.patch.setattr(facts, "limits", lambda: (facts.TORCH_ADDRESSES, facts.LARGEST_FILE))
    facts.check_before_torch()


@pytest.mark.parametrize("level", ["", "yes", "2"])
def test_a_debug_level_that_torch_does_not_know(machine, level):
    machine.patch.setenv("TORCH_DISTRIBUTED_DEBUG", level)
    row = check_environment()["PyTorch"]
    assert row.status == "fail"
    assert f"TORCH_DISTRIBUTED_DEBUG={level!r}" in row.advice
    machine.patch.setenv("TORCH_DISTRIBUTED_DEBUG", "info")
    assert check_environment()["PyTorch"].status == "pass"


def test_a_folder_that_is_gone_or_forbidden(machine):
    (machine.root / "gone").mkdir()
    machine.patch.chdir(machine.root / "gone")
    (machine.root / "gone").rmdir()
    row = check_environment()["PyTorch"]
    assert (row.status, "has been deleted" in row.advice) == ("fail", True)
    machine.patch.chdir(machine.root)
    machine.patch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="can't be entered"):
        facts.check_before_torch()


TESTED = "the course is tested with torch 2.6 to 2.15"


@pytest.mark.parametrize("version", ["2.6.0", "2.13.0+cpu", "2.15.3"])
def test_tested_torch(machine, version):
    machine.torch(version, None)
    row = check_environment()["PyTorch"]
    assert (row.status, row.value) == ("pass", f"{version}, CPU build; {TESTED}")


@pytest.mark.parametrize("version", ["2.5.1+cpu", "2.16.0.dev20270101", "3.0.0"])
def test_torch_that_was_not_tested(machine, version):
    machine.torch(version, None)
    row = check_environment()["PyTorch"]
    assert (row.status, row.value) == ("warn", f"{version}, CPU build; {TESTED}")
    assert row.advice == "If something fails, try one of the tested versions."


@pytest.mark.parametrize("build", [("13.0", None), (None, "6.4")])
def test_a_large_build_without_a_gpu(machine, build):
    machine.torch("2.13.0", *build)
    row = check_environment()["PyTorch"]
    assert row.status == "warn"
    assert "the CPU build needs 0.8 GB, not 5" in row.advice
    assert "pip install torch --index-url https://download.pytorch.org/whl/cpu" in row.advice
    machine.write("dev/kfd", "")
    assert check_environment()["PyTorch"].status == "pass"


def test_old_torch_and_an_old_driver(machine):
    machine.nvidia_smi()
    machine.torch("2.5.1+cu130", "13.0")
    assert check_environment()["PyTorch"].status == "fail"  # the driver is the worse trouble


@pytest.mark.parametrize("trace", ["proc/driver/nvidia/version", "dev/nvidia0", "dev/nvidia3", ""])
def test_torch_without_cuda_on_a_machine_with_a_gpu(machine, trace):
    if trace:
        machine.write(trace, "")  # nvidia-smi is missing: only this file gives the GPU away
    else:
        machine.nvidia_smi()
    row = check_environment()["PyTorch"]
    assert row.status == "warn"
    assert row.value == "2.13.0+cpu, CPU build, on a machine with a GPU"
    assert "CUDA build" in row.advice
    assert ("CUDA 12.6 or older" in row.advice) == (not trace)


def test_old_driver_against_newer_cuda_build(machine):
    machine.nvidia_smi(banner=BANNER)
    machine.torch("2.13.0+cu130", "13.0")
    row = check_environment()["PyTorch"]
    assert row.status == "fail"
    assert row.value == "2.13.0+cu130, CUDA 13.0 build, driver for CUDA 12.6"
    assert "Update the driver, or choose a build for CUDA 12.6 or older" in row.advice


@pytest.mark.parametrize(
    ("banner", "cuda"),
    [(BANNER, "12.6"), (BANNER, "12.9"), (BANNER, "11.8"), (NEW_BANNER, "13.0")],
)
def test_a_driver_of_the_same_or_a_newer_major_version_is_fine(machine, banner, cuda):
    machine.nvidia_smi(banner=banner)
    machine.torch(f"2.13.0+cu{cuda}", cuda)
    assert check_environment()["PyTorch"].status == "pass"


def test_driver_version_that_cannot_be_read(machine):
    machine.gpu_files()
    machine.torch("2.13.0+cu130", "13.0")
    assert "could not tell" in check_environment()["PyTorch"].value
    machine.nvidia_smi(banner="a banner of the year 2040")
    row = check_environment()["PyTorch"]
    assert row.status == "warn"
    assert row.value.endswith("because nvidia-smi does not print it")


# ------------------------------------------------------------------ GPUs


def test_gpus_with_memory_and_links(machine):
    machine.nvidia_smi(gpus=TWO_A100 + "\nNVIDIA GB10, [N/A]")
    row = check_environment()["GPUs"]
    assert row.status == "pass"
    assert row.value == (
        "2 x NVIDIA A100-SXM4-40GB (40 GiB), 1 x NVIDIA GB10; "
        "links: PCIe across CPU sockets (2 pairs), NVLink (1 pair)"
    )


def test_hidden_gpus(machine):
    machine.nvidia_smi()
    machine.patch.setenv("CUDA_VISIBLE_DEVICES", "1")
    row = check_environment()["GPUs"]
    assert row.status == "pass"
    assert row.value.endswith("CUDA_VISIBLE_DEVICES='1'")
    machine.patch.setenv("CUDA_VISIBLE_DEVICES", "")
    row = check_environment()["GPUs"]
    assert row.status == "warn"
    assert "hides every GPU" in row.advice


def test_nvidia_smi_that_fails(machine):
    machine.nvidia_smi(gpus="Failed to initialize NVML: Driver/library version mismatch", code=18)
    machine.gpu_files()
    row = check_environment()["GPUs"]
    assert row.status == "warn"
    assert "Driver/library version mismatch" in row.value
    assert "nvidia-smi" in row.advice


def test_a_driver_without_a_device_means_a_container_without_gpus(machine):
    machine.write("proc/driver/nvidia/version", "")
    row = check_environment()["GPUs"]
    assert row.status == "warn"
    assert "--gpus all" in row.advice


def test_an_nvidia_smi_that_hangs_is_ended(machine):
    machine.patch.setattr(nvidia, "SMI_LIMIT_S", 0.3)
    machine.write("bin/nvidia-smi", f"#!/bin/sh\necho $$ >> {machine.root}/pids\nsleep 60\n")
    (machine.root / "bin/nvidia-smi").chmod(0o755)
    machine.patch.setenv("PATH", f"{machine.root}/bin:/usr/bin:/bin")
    start = time.monotonic()
    row = check_environment()["GPUs"]
    assert time.monotonic() - start < 3
    assert "no answer within 0.3 s" in row.value
    for pid in (machine.root / "pids").read_text().split():
        until = time.monotonic() + 5
        while living_in_group(int(pid)):  # its child, the sleep, must end too
            assert time.monotonic() < until
            time.sleep(0.02)


def living_in_group(group):
    # a zombie has ended; when it is collected is its parent's business
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.NoSuchProcess, ProcessLookupError):
            pass
    return found


def test_gpu_count_and_default_nprocs(machine):
    import torch

    for name in ("_device_count_nvml", "device_count"):
        machine.patch.setattr(torch.cuda, name, raises(AssertionError("no need to ask")))
    machine.patch.setattr(facts, "gpu_count_in_child", raises(AssertionError("3 s for nothing")))
    machine.torch("2.13.0+cu130", "13.0")
    assert (env.gpu_count(), env.default_nprocs()) == (0, 2)  # no device file: no GPU
    machine.torch("2.13.0+cpu", None)
    machine.gpu_files()
    assert (env.gpu_count(), env.default_nprocs()) == (0, 2)  # a CPU build cannot use a GPU
    machine.torch("2.13.0+cu130", "13.0")
    for nvml, nprocs in ((8, 8), (1, 2), (0, 2)):
        machine.patch.setattr(torch.cuda, "_device_count_nvml", lambda nvml=nvml: nvml)
        assert (env.gpu_count(), env.default_nprocs()) == (nvml, nprocs)


def test_gpu_count_asks_a_child_when_nvml_does_not_answer(machine):
    import torch

    machine.gpu_files()
    machine.torch("2.13.0+cu130", "13.0")
    machine.patch.setattr(torch.cuda, "_device_count_nvml", lambda: -1)
    machine.patch.setattr(torch.cuda, "device_count", raises(AssertionError("may touch CUDA")))
    facts.gpu_count_in_child.cache_clear()
    in_child = "import torch; print(torch.cuda.device_count())"
    real = subprocess.check_output([sys.executable, "-c", in_child], text=True, timeout=60)
    assert env.gpu_count() == int(real)
    machine.patch.setattr(sys, "executable", "/no/such/python")
    facts.gpu_count_in_child.cache_clear()
    assert env.gpu_count() == 0
    facts.gpu_count_in_child.cache_clear()


def test_backends(machine):
    machine.patch.setattr(facts, "backends", lambda: ())
    assert check_environment()["Backends"].status == "fail"
    machine.patch.setattr(facts, "backends", lambda: ("nccl",))
    assert check_environment()["Backends"].status == "warn"
    machine.patch.setattr(facts, "backends", lambda: ("gloo",))
    assert check_environment()["Backends"].status == "pass"
    machine.gpu_files()
    row = check_environment()["Backends"]
    assert row.status == "warn"
    assert "nccl" in row.advice


# ------------------------------------------------------------------ cores and memory


def test_one_core_by_affinity(machine):
    machine.patch.setattr(facts, "affinity", lambda: 1)
    row = check_environment()["CPU cores"]
    assert (row.status, row.value) == ("warn", "1 core")
    assert "take turns" in row.advice


def test_one_core_by_real_affinity():
    code = (
        "import os, ddp_helpers.environment.check as e; "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(e.usable_cpu_count())"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60) == "1\n"


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}),
        ("0::/on/the/host\n", {"cpu.max": "150000 100000\n"}),
        ("0::/../outside\n", {"cpu.max": "150000 100000\n"}),
        ("3:cpu:/\n0::/\n", {"unified/cpu.max": "150000 100000\n"}),
        (
            "5:cpu,cpuacct:/docker/0a1b\n1:name=systemd:/x\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "150000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
        ),
        (
            "5:cpuset:/\n4:cpu,cpuacct:/slurm/job 1\n",
            {
                "cpu/slurm/job 1/cpu.cfs_quota_us": "15000\n",
                "cpu/slurm/job 1/cpu.cfs_period_us": "10000\n",
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
            },
        ),
    ],
)
def test_one_core_by_cgroup_quota(machine, cgroup, files):
    machine.write("proc/self/cgroup", cgroup)
    for path, text in files.items():
        machine.write(f"cgroup/{path}", text)
    assert env.usable_cpu_count() == 1
    row = check_environment()["CPU cores"]
    assert row.status == "warn"
    assert row.value == "1 core (8 visible, but the cgroup's quota is 1.5)"


def test_half_a_core_counts_as_one(machine):
    machine.write("cgroup/cpu.max", "50000 100000")
    assert env.usable_cpu_count() == 1
    assert "0.5" in check_environment()["CPU cores"].value


@pytest.mark.parametrize("rubbish", ["abc 100000", "0 100000", "-5 100000", "100000 0"])
def test_a_quota_that_cannot_be_read_is_said_and_not_obeyed(machine, rubbish):
    machine.write("cgroup/cpu.max", rubbish)
    assert env.usable_cpu_count() == 8
    row = check_environment()["CPU cores"]
    assert row.status == "warn"
    assert row.value.startswith("could not tell, because ValueError")


def test_no_cgroup_file_at_all(machine):
    (machine.root / "proc/self/cgroup").unlink()
    assert env.usable_cpu_count() == 8
    assert check_environment()["CPU cores"].value.startswith("could not tell")


quota_words = st.one_of(st.integers(-(2**40), 2**40).map(str), st.sampled_from(["max", "", "?"]))


@given(affinity=st.integers(1, 512), quota=quota_words, period=quota_words, old=st.booleans())
def test_usable_cores_are_at_least_one_and_never_more_than_affinity_or_quota(
    tmp_path_factory, affinity, quota, period, old
):
    root = tmp_path_factory.mktemp("machine")
    (root / "proc/self").mkdir(parents=True)
    (root / "cgroup/cpu").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("4:cpu:/\n" if old else "0::/\n")
    if old:
        (root / "cgroup/cpu/cpu.cfs_quota_us").write_text(quota)
        (root / "cgroup/cpu/cpu.cfs_period_us").write_text(period)
    else:
        (root / "cgroup/cpu.max").write_text(f"{quota} {period}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facts, "PROC", root / "proc")
        patch.setattr(facts, "CGROUP", root / "cgroup")
        patch.setattr(facts, "affinity", lambda: affinity)
        cores = env.usable_cpu_count()
    assert 1 <= cores <= affinity
    if quota.isdecimal() and period.isdecimal() and int(quota) > 0 and int(period) > 0:
        assert cores == max(1, min(affinity, math.floor(int(quota) / int(period))))
    else:
        assert cores == affinity


@pytest.mark.parametrize(
    ("setting", "status"),
    [("8", "pass"), ("1", "pass"), ("4,2", "pass"), ("9", "warn"), ("0", "warn"), ("all", "warn")],
)
def test_omp_num_threads(machine, setting, status):
    machine.patch.setenv("OMP_NUM_THREADS", setting)
    row = check_environment()["OMP_NUM_THREADS"]
    assert row.status == status
    assert status == "pass" or "OMP_NUM_THREADS=4" in row.advice


@pytest.mark.parametrize(
    ("free_gib", "status"), [(12, "pass"), (2, "pass"), (1.9, "warn"), (0.4, "fail")]
)
def test_memory(machine, free_gib, status):
    machine.write(
        "proc/meminfo", f"MemTotal: {2**24} kB\nMemAvailable: {int(free_gib * 2**20)} kB\n"
    )
    row = check_environment()["Memory"]
    assert row.status == status
    assert bool(row.advice) == (status != "pass")


@pytest.mark.parametrize("old", [True, False])
def test_memory_by_cgroup_counts_file_cache_as_free(machine, old):
    limit, usage, cache = 4 * GIB, 3 * GIB + GIB // 2, GIB
    folder = "cgroup/memory/job/" if old else "cgroup/job/"
    machine.write("proc/self/cgroup", "7:memory:/job\n" if old else "0::/job\n")
    machine.write(f"{folder}memory.{'limit_in_bytes' if old else 'max'}", f"{limit}\n")
    machine.write(f"{folder}memory.{'usage_in_bytes' if old else 'current'}", f"{usage}\n")
    stat = f"cache 5\n{'total_' * old}inactive_file {cache}\n"
    machine.write(f"{folder}memory.stat", stat)
    assert facts.memory() == (limit - usage + cache, limit)
    row = check_environment()["Memory"]
    assert (row.status, row.value) == ("warn", "1.5 GiB free of 4 GiB")


def test_memory_without_a_cgroup_limit(machine):
    machine.write("cgroup/memory.max", "max\n")
    machine.write("cgroup/memory.current", f"{64 * GIB}\n")
    assert facts.memory() == (12 * GIB, 16 * GIB)


# ------------------------------------------------------------------ /dev/shm, files


def test_docker_default_shm_is_too_small(machine):
    machine.patch.setattr(facts, "shm", lambda: (64 * 2**20, 64 * 2**20))
    row = check_environment()["/dev/shm"]
    assert (row.status, row.value) == ("warn", "64 MiB")
    for word in ("--shm-size=2g", "--ipc=host", "num_workers=0"):
        assert word in row.advice


def test_full_shm(machine):
    machine.patch.setattr(facts, "shm", lambda: (2**20, 8 * GIB))
    row = check_environment()["/dev/shm"]
    assert (row.status, row.value) == ("warn", "1 MiB free of 8 GiB")
    assert "left behind" in row.advice


Space = namedtuple("Space", "f_frsize f_blocks f_bavail")


def test_shm_is_read_from_the_file_system(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "DEV", tmp_path)
    assert env.check_shm()[0] == "fail"  # there is none
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(os, "statvfs", {tmp_path / "shm": Space(4096, 16384, 10)}.get)
    assert facts.shm() == (40960, 64 * 2**20)
    monkeypatch.setattr(os, "access", lambda *_: False)
    status, value, advice = env.check_shm()
    assert (status, value) == ("fail", "not usable: this process may not write there")
    assert "mount" in advice


def test_open_files(machine):
    machine.patch.setattr(facts, "open_files", lambda: (256, 512))
    row = check_environment()["Open files"]
    assert (row.status, row.value) == ("warn", "256")
    assert "`ulimit -n 512`" in row.advice
    assert "hard limit is 512" in row.advice
    machine.patch.setattr(facts, "open_files", lambda: (math.inf, math.inf))
    assert check_environment()["Open files"].value == "unlimited"


def test_open_files_never_advises_the_value_already_set(machine):
    machine.patch.setattr(facts, "open_files", lambda: (256, 256))
    row = check_environment()["Open files"]
    assert (row.status, row.value) == ("warn", "256")
    assert "ulimit -n" not in row.advice
    assert "hard limit is 256" in row.advice
    assert "/etc/security/limits.conf" in row.advice
    assert "--ulimit nofile=4096" in row.advice


def test_open_files_below_a_high_hard_limit_need_no_administrator(machine):
    machine.patch.setattr(facts, "open_files", lambda: (256, 2**20))
    advice = check_environment()["Open files"].advice
    assert "`ulimit -n 4096`" in advice
    assert "hard limit" not in advice


def test_open_files_after_a_real_ulimit():
    code = "import ddp_helpers.environment.check as e; print(e.check_open_files())"
    command = ["bash", "-c", 'ulimit -n 256; exec "$0" -c "$1"', sys.executable, code]
    shown = subprocess.check_output(command, text=True, timeout=60)
    assert shown.startswith("('warn', '256', ")
    assert "ulimit -n" not in shown
    assert "limits.conf" in shown


def test_open_files_that_no_launch_can_do_with(machine):
    (machine.root / "proc/self/fd").mkdir()
    for number in range(11):
        machine.write(f"proc/self/fd/{number}", "")
    needed = 10 + env.FILES + 2 * env.FILES_PER_RANK
    for limit, status in ((needed, "warn"), (needed - 1, "fail")):
        machine.patch.setattr(facts, "open_files", lambda limit=limit: (limit, 4096))
        row = check_environment()["Open files"]
        assert (row.status, row.value) == (status, str(limit))
        assert "`ulimit -n 4096`" in row.advice
    assert f"2 ranks can't start with less than {needed}" in row.advice
    (machine.root / "proc/self/fd").rename(machine.root / "gone")
    assert facts.files_in_use() == 3


def test_tasks_are_counted_where_the_limit_is_low(machine):
    for path in ("7/task/7", "7/task/8", "9/task/9", "self/task/7"):
        (machine.root / "proc" / path).mkdir(parents=True)
    user = os.geteuid() or 12345
    if not os.geteuid():
        os.chown(machine.root / "proc/7", user, -1)
        os.chown(machine.root / "proc/self", user, -1)
    machine.patch.setattr(resource, "getrlimit", lambda _: (100, 200))
    machine.patch.setattr(os, "geteuid", lambda: user)
    assert facts.tasks() == (100, 2 if user == 12345 else 3)  # of 9, only where one can't chown
    machine.patch.setattr(resource, "getrlimit", lambda _: (facts.MANY_TASKS + 1, -1))
    assert facts.tasks() == (math.inf, 0)
    machine.patch.setattr(os, "geteuid", lambda: 0)
    machine.patch.setattr(resource, "getrlimit", lambda _: (100, 200))
    assert facts.tasks() == (math.inf, 0)


def test_open_files_of_a_real_process():
    code = (
        "import resource; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard)); "
        "import ddp_helpers.environment.check as e; "
        "print(e.machine.open_files()[0], e.check_open_files()[0])"
    )
    shown = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60)
    assert shown == "300 warn\n"


# ------------------------------------------------------------------ network


def test_hostname_that_does_not_resolve(machine):
    machine.patch.setattr(facts, "hostname", lambda: "box-17.invalid")
    real = socket.getaddrinfo

    def no_such_name(name, *args, **kwargs):
        if name == "box-17.invalid":
            raise socket.gaierror(-2, "Name or service not known")
        return real(name, *args, **kwargs)

    machine.patch.setattr(socket, "getaddrinfo", no_such_name)
    row = check_environment()["Host name"]
    assert row.status == "warn"
    assert row.value == "'box-17.invalid' does not resolve: [Errno -2] Name or service not known"
    assert "/etc/hosts" in row.advice
    assert "GLOO_SOCKET_IFNAME=lo" in row.advice


def test_hostname_that_resolves_to_another_machine(machine):
    # 203.0.113.0/24 is set aside for documentation (RFC 5737): no machine has it
    other = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("203.0.113.9", 0))]
    machine.patch.setattr(facts, "resolve", lambda name: other)
    row = check_environment()["Host name"]
    assert row.status == "warn"
    assert "resolves to 203.0.113.9, which is not this machine" in row.value


def test_a_name_server_that_never_answers(machine):
    machine.patch.setattr(facts, "RESOLVE_LIMIT_S", 0.2)
    real = socket.getaddrinfo

    def only_numbers_are_quick(name, *args, **kwargs):
        if name and not name[0].isdigit():
            time.sleep(3)
        return real(name, *args, **kwargs)

    machine.patch.setattr(socket, "getaddrinfo", only_numbers_are_quick)
    start = time.monotonic()
    report = check_environment()
    assert time.monotonic() - start < 2
    assert "no answer within 0.2 s" in report["Host name"].value


def test_a_hostname_no_resolver_accepts(machine):
    machine.patch.setattr(facts, "hostname", lambda: "x" * 300)  # UnicodeError inside Python
    assert "does not resolve" in check_environment()["Host name"].value


def test_loopback(machine):
    machine.patch.setattr(facts, "resolve", raises(OSError("no localhost line")))
    row = check_environment()["Loopback"]
    assert row.status == "warn"
    assert "/etc/hosts" in row.advice
    machine.patch.setattr(socket, "create_connection", raises(OSError("Network is unreachable")))
    row = check_environment()["Loopback"]
    assert row.status == "fail"
    assert "ip link set lo up" in row.advice


def test_no_free_port(machine):
    machine.patch.setattr(socket, "create_server", raises(OSError("Address already in use")))
    row = check_environment()["Free port"]
    assert (row.status, row.value) == ("fail", "none: Address already in use")
    assert row.advice


@pytest.mark.parametrize(
    ("variable", "setting", "named"),
    [
        ("GLOO_SOCKET_IFNAME", "eth7", "'eth7'"),
        ("GLOO_SOCKET_IFNAME", "lo,eth7", "'eth7'"),
        ("GLOO_SOCKET_IFNAME", "lo, eth0", "' eth0'"),  # gloo looks for a name with a space
        ("GLOO_SOCKET_IFNAME", "eth", "'eth'"),  # gloo takes no prefix
        ("GLOO_SOCKET_IFNAME", "eth0,lo", None),
        ("GLOO_SOCKET_IFNAME", "", None),
        ("NCCL_SOCKET_IFNAME", "eth", None),  # nccl does
        ("NCCL_SOCKET_IFNAME", "ib,eth", None),
        ("NCCL_SOCKET_IFNAME", "ib,ens", "'ib', 'ens'"),
        ("NCCL_SOCKET_IFNAME", "=eth", "'eth'"),
        ("NCCL_SOCKET_IFNAME", "=eth0", None),
        ("NCCL_SOCKET_IFNAME", "^docker,lo", None),
        ("NCCL_SOCKET_IFNAME", "^=eth7", None),
    ],
)
def test_interface_variables(machine, variable, setting, named):
    machine.patch.setenv(variable, setting)
    row = check_environment()["Network interfaces"]
    if named is None:
        assert (row.status, row.value) == ("pass", "lo (IPv4), eth0 (IPv4 IPv6)")
    else:
        assert row.status == "warn"
        assert row.value.startswith(f"{variable} names {named}; up here: lo")
        assert f"unset {variable}" in row.advice


def test_an_interface_that_is_the_beginning_of_another(machine):
    machine.patch.setattr(facts, "interfaces", lambda: {"eth1": "IPv4", "eth10": "IPv4"})
    for setting, ok in (("eth1", False), ("=eth1", True), ("eth", True), ("eth1,eth10", True)):
        machine.patch.setenv("NCCL_SOCKET_IFNAME", setting)
        row = check_environment()["Network interfaces"]
        assert (row.status == "pass") == ok
    machine.patch.setenv("NCCL_SOCKET_IFNAME", "eth1")
    row = check_environment()["Network interfaces"]
    assert row.value.startswith("NCCL_SOCKET_IFNAME=eth1 takes eth10, too; up here: eth1")
    assert "`export NCCL_SOCKET_IFNAME='=eth1'` is this one alone" in row.advice


def test_interfaces_none_and_many(machine):
    machine.patch.setattr(facts, "interfaces", dict)
    assert check_environment()["Network interfaces"].status == "warn"
    machine.patch.setattr(facts, "interfaces", lambda: {f"veth{i}": "IPv4" for i in range(9)})
    assert check_environment()["Network interfaces"].value.endswith("veth5 (IPv4) and 3 more")


# ------------------------------------------------------------------ variables


def test_leftover_variables(machine):
    machine.patch.setenv("RANK", "0")
    machine.patch.setenv("MASTER_ADDR", "node1")
    row = check_environment()["Leftover variables"]
    assert row.status == "warn"
    assert row.value == "RANK, MASTER_ADDR set, but no launcher started this process"
    assert "`unset RANK MASTER_ADDR`" in row.advice


@pytest.mark.parametrize(
    "marks",
    [
        {"TORCHELASTIC_RUN_ID": "none"},
        {"OMPI_COMM_WORLD_RANK": "1"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "2"},
    ],
)
def test_a_launchers_variables_are_fine(machine, marks):
    machine.patch.setenv("RANK", "1")
    for name, value in marks.items():
        machine.patch.setenv(name, value)
    assert check_environment()["Leftover variables"].status == "pass"


def status_in_a_rank(_rank, queue):
    os.environ["RANK"] = "0"
    queue.put(env.check_variables()[0])


def test_ranks_of_torch_multiprocessing_have_a_launcher():
    import torch.multiprocessing as mp

    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(status_in_a_rank, args=(queue,), nprocs=1)
    assert queue.get() == "pass"


def test_debug_detail_is_warned_about(machine):
    machine.patch.setenv("TORCH_DISTRIBUTED_DEBUG", "detail")
    row = check_environment()["Leftover variables"]
    assert row.status == "warn"
    assert "INFO" in row.advice
