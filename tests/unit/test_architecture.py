"""The module arrows: who may import whom."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "ddp_helpers"
ARROWS = {
    "records": set(),
    "rendezvous": set(),
    "environment": {"environment_report", "machine", "nvidia"},
    "environment_report": set(),
    "machine": set(),
    "nvidia": set(),
    "torch_mends": {"rendezvous"},
    "process_group": {"rendezvous", "torch_mends"},
    "checks": set(),
    "sampler": {"checks"},
    "loaders": {"checks", "sampler"},
    "data_folder": set(),
    "data": {"data_folder", "loaders", "sampler"},
    "model": set(),
    "checkpoint": set(),
    "checkpoint_folder": {"checkpoint", "checks"},
    "random_state": set(),
    "losses": set(),
    "precision": set(),
    "schedule": {"checks"},
    "early_stop": {"checks"},
    "training_records": set(),
    "training_report": {"checks", "process_group", "training_records"},
    "steps": {"loaders", "losses", "process_group", "sampler"},
    "evaluation": {"checkpoint", "losses", "precision", "process_group", "training_records"},
    "resume": {
        *{"checkpoint", "checkpoint_folder", "losses", "precision", "process_group"},
        *{"random_state", "sampler", "steps", "training_records"},
    },
    "training_checks": {"checkpoint", "checkpoint_folder", "checks", "process_group"},
    "known_errors": set(),
    "error_texts_gpu": {"known_errors"},
    "error_texts": {"error_texts_gpu", "known_errors"},
    "known_lines": {"known_errors"},
    "log_text": set(),
    "hang_causes": {"known_errors", "records"},
    "diagnosis": {
        "error_texts",
        "hang_causes",
        "known_errors",
        "known_lines",
        "log_text",
        "records",
    },
    "error_examples": set(),
    "similar_texts": set(),
    "troubleshooting": {"diagnosis", "error_examples", "faults"},
    "explain_command": {"diagnosis", "faults", "similar_texts", "troubleshooting"},
    "training": {
        *{"checkpoint", "checkpoint_folder", "data", "early_stop", "evaluation", "loaders"},
        *{"losses", "model", "precision", "process_group", "resume", "steps"},
        *{"training_checks", "training_records", "training_report"},
    },
    "progress": set(),
    "view": set(),
    "frames": {"records"},
    "collective_methods": set(),
    "last_call": {"collective_methods", "frames"},
    "sanitizer": {"collective_methods", "frames", "records"},
    "worker": {"frames", "last_call", "progress", "records", "sanitizer", "torch_mends"},
    "supervisor": {"diagnosis", "fork_server", "frames", "interrupts", "records", "view", "worker"},
    "failure_report": {"records", "diagnosis", "worker"},
    "fork_server": {"interrupts"},
    "interrupts": set(),
    "launch": {
        *{"environment", "failure_report", "fork_server", "records", "supervisor"},
        *{"view", "worker"},
    },
    "preload": {"process_group", "worker"},
    "figures": set(),
    "plots": {"figures"},
    "collective_plots": {"figures"},
    "intervals": set(),
    "timeline_records": {"intervals"},
    "profiler_events": {"intervals", "timeline_records"},
    "timeline": {"profiler_events", "timeline_records"},
    "timeline_plots": {"figures", "intervals", "timeline_records"},
    "bench_records": {"timeline_records"},
    "trial_changes": {"bench_records"},
    "step_meter": {"bench_records", "process_group", "timeline", "trial_changes", "worker"},
    "verdict": {"bench_records", "timeline_records"},
    "bench_plots": {"figures", "timeline_plots", "timeline_records"},
    "bench_command": {
        *{"bench_plots", "bench_records", "environment", "figures", "launch", "step_meter"},
        *{"process_group", "timeline_records", "verdict"},
    },
    "__init__": {"environment", "launch", "process_group", "progress", "sanitizer"},
    "cluster": set(),
    "namespaces": set(),
    "host": {"interrupts", "namespaces"},
    "two_hosts": {"host", "interrupts", "namespaces"},
    "cost_records": set(),
    "cost_formulas": set(),
    "scaling": {"cost_formulas", "cost_records"},
    "scaling_plots": {"cost_records", "figures"},
    "published_runs": {"cost_records", "scaling"},
    "plan_command": {
        *{"cost_records", "figures", "machine_costs", "model", "published_runs"},
        *{"scaling", "scaling_plots"},
    },
    "cost_fits": {"cost_formulas", "cost_records"},
    "rank_probes": {"process_group"},
    "sent_calls": set(),
    "work_costs": {"cost_fits", "cost_records", "launch", "rank_probes"},
    "machine_costs": {
        *{"cost_fits", "cost_records", "environment", "rank_probes", "scaling", "work_costs"}
    },
    "seats": {"launch", "process_group"},
    "classroom": {"environment", "environment_report", "exercises", "machine", "seats"},
    "cli": {
        *{
            "bench_command",
            "classroom",
            "cluster",
            "data_folder",
            "diagnosis",
            "environment",
            "explain_command",
            "launch",
            "plan_command",
        },
        *{"plots", "process_group", "training"},
    },
    "__main__": {"cli"},
}


def is_ours(name: str) -> bool:
    """True for a module or a folder of modules of the package."""
    path = PACKAGE / name.split(".")[0]
    return path.is_dir() or path.with_suffix(".py").exists()


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports anywhere, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddp_helpers"):
            module = node.module.removeprefix("ddp_helpers").lstrip(".")
            names = [alias.name for alias in node.names] if not module else [module]
            found |= {name.split(".")[0] for name in names if is_ours(name)} or {""}
        elif isinstance(node, ast.Import):
            ours = [a.name for a in node.names if a.name.startswith("ddp_helpers.")]
            found |= {name.removeprefix("ddp_helpers.").split(".")[0] for name in ours}
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_imports_run_one_way(path):
    assert path.stem in ARROWS, f"{path.name} is new: say here what it may import"
    assert imports(path) <= ARROWS[path.stem]


@pytest.mark.parametrize("path", sorted((PACKAGE / "sanitizer").glob("*.py")), ids=lambda p: p.stem)
def test_the_sanitizer_stands_alone(path):
    assert imports(path) <= ARROWS["sanitizer"] | {"sanitizer"}


WIDGETS = {
    "__init__": set(),
    "_base": {"figures"},
    "_scene": {"figures"},
    "collectives": {"figures", "launch", "process_group"},
    "ring": {"figures"},
    "sampler": {"figures"},
    "accumulation": {"figures", "launch", "process_group"},
    "fault_lab": {"faults", "figures", "records"},
    "ladder": {"figures", "templates"},
    "monitor": {"data", "figures", "launch", "model", "process_group", "progress"},
    "one_step": {"figures", "launch", "model", "process_group"},
    "overlap": {"figures", "intervals", "launch", "process_group", "timeline", "timeline_records"},
    "planner": {"cost_records", "figures", "machine_costs", "model", "scaling"},
    "machine_room": {"environment", "environment_report", "figures", "machine"},
}


@pytest.mark.parametrize("path", sorted((PACKAGE / "widgets").glob("*.py")), ids=lambda p: p.stem)
def test_an_explorable_uses_only_what_it_shows(path):
    assert path.stem in WIDGETS, f"{path.name} is new: say here what it may import"
    assert imports(path) <= WIDGETS[path.stem] | {"widgets"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "faults").glob("*.py")), ids=lambda p: p.stem)
def test_a_fault_needs_nothing_but_its_lab(path):
    lab = {"diagnosis", "launch", "records"} if path.stem == "__init__" else set()
    assert imports(path) <= lab | {"faults"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "exercises").glob("*.py")), ids=lambda p: p.stem)
def test_an_exercise_needs_nothing_but_its_check(path):
    needed = {"_figure": {"figures"}, "_ranks": {"launch", "process_group", "records"}}
    example = {"e05_1_read_a_report": {"launch", "process_group"}}
    assert imports(path) <= {"exercises", "sent_calls"} | (needed | example).get(path.stem, set())


@pytest.mark.parametrize("path", sorted((PACKAGE / "templates").glob("*.py")), ids=lambda p: p.stem)
def test_templates_import_nothing_of_ours(path):
    assert not imports(path)
