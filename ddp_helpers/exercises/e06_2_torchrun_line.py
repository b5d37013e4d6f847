"""Build the command for each machine, and have torchrun run it."""

import contextlib
import io
import json
import os
import re
import shlex
import socket
import sys
import tempfile
from pathlib import Path

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong

EXERCISE = Exercise(
    title="A command for each machine",
    name="command",
    task="Return the torchrun command, as one text, that is typed on machine `node_rank` of "
    "`nnodes`: `per_node` ranks on each, meeting at `address` and `port`, running `script`. The "
    "check runs your commands with torchrun itself.",
    hints=(
        "Everything but one option is the same on all machines.",
        "torchrun --help: --nnodes, --node-rank, --nproc-per-node, and where to meet.",
        "--master-addr and --master-port name the place; the script comes last.",
    ),
    lesson="`python -m ddp_helpers torchrun` writes these lines, and `preflight` tries them first.",
    minutes=8,
)
SCRIPT = """
import json, os, pathlib
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK")
here = pathlib.Path(__file__).parent
seen = json.dumps({name: os.environ[name] for name in names})
here.joinpath("seen-" + os.environ["RANK"]).write_text(seen)
"""


def starter(nnodes, node_rank, per_node, address, port, script):
    return f"torchrun --nproc-per-node={per_node} {script}"  # one machine only


def solution(nnodes, node_rank, per_node, address, port, script):
    return (
        f"torchrun --nnodes={nnodes} --node-rank={node_rank} --nproc-per-node={per_node} "
        f"--master-addr={address} --master-port={port} {script}"
    )


def words_of(text):
    """What a shell makes of the command, behind the word torchrun; raises NotYet without it."""
    words = shlex.split(text.replace("\\\n", " ")) if isinstance(text, str) else []
    while words and re.fullmatch(r"\w+=.*", words[0]):  # a variable for it
        del words[0]
    if words[1:3] == ["-m", "torch.distributed.run"]:
        return words[3:]
    if not words or Path(words[0]).name != "torchrun":
        raise NotYet(f"expected one text that begins with torchrun, got {str(text)[:70]!r}")
    return words[1:]


def read(text, script, per_node):
    """What torchrun's own parser makes of the text; raises NotYet where it refuses."""
    from torch.distributed.run import get_args_parser

    words = words_of(text)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = get_args_parser().parse_args(words)
    except SystemExit:
        said = complaint.getvalue().strip().rpartition("error: ")[2]
        raise NotYet(f"torchrun refuses it: {said}") from None
    if options.training_script != script:
        raise NotYet(f"torchrun takes {options.training_script!r} for the script, not {script!r}")
    if options.training_script_args:
        raise NotYet(
            f"{options.training_script_args[0]} goes to the script, as all that stands behind it: "
            "torchrun's options come before the script"
        )
    if options.nproc_per_node != str(per_node):
        raise NotYet(f"{options.nproc_per_node} ranks on each machine, expected {per_node}")
    return options


def on_rank(answer, port, folder):
    """This process plays one machine."""
    node, script = int(os.environ["RANK"]), str(Path(folder, "train.py"))
    text = answer(2, node, 2, "127.0.0.1", port, script)
    options = read(text, script, 2)
    if options.nnodes not in ("2", "2:2"):
        raise NotYet(f"--nnodes is {options.nnodes}, but there are 2 machines")
    static = options.rdzv_backend == "static"
    if static and options.node_rank != node:
        raise NotYet(f"on machine {node}, --node-rank is {options.node_rank}")
    place = f"{options.master_addr}:{options.master_port}" if static else options.rdzv_endpoint
    if options.rdzv_endpoint and static:
        place = options.rdzv_endpoint
    if place not in (f"127.0.0.1:{port}", f"localhost:{port}"):
        raise NotYet(f"machine {node} goes to {place or 'nowhere'}, expected 127.0.0.1:{port}")
    return text


def really_run(answer, texts, folder):
    """Each process is one machine, and starts torchrun as a shell on it would."""
    import subprocess

    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
    environment["TMPDIR"] = folder  # torchrun never removes its folder of logs
    words = words_of(texts[int(os.environ["RANK"])])
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    return ended.returncode, ended.stderr[-300:]


def check(ranks):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.py").write_text(SCRIPT)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        texts = ranks.run(on_rank, 2, port, folder, group=False)
        ended = ranks.run(really_run, 2, texts, folder, group=False)
        for node, (code, said) in enumerate(ended):
            if code:
                raise NotYet(f"torchrun on machine {node} ended with {code}: {said}")
        seen = [json.loads(path.read_text()) for path in Path(folder).glob("seen-*")]
        if sorted(int(each["RANK"]) for each in seen) != [0, 1, 2, 3]:
            raise NotYet(f"expected ranks 0 to 3, torchrun started {len(seen)} different ones")


def same_everywhere(nnodes, node_rank, per_node, address, port, script):
    return solution(nnodes, 0, per_node, address, port, script)


def script_first(nnodes, node_rank, per_node, address, port, script):
    return f"torchrun {script} --nnodes={nnodes} --nproc-per-node={per_node}"


def world_size(nnodes, node_rank, per_node, address, port, script):
    return solution(nnodes, node_rank, nnodes * per_node, address, port, script)


def no_address(nnodes, node_rank, per_node, address, port, script):
    return (
        f"torchrun --nnodes={nnodes} --node-rank={node_rank} --nproc-per-node={per_node} {script}"
    )


def unknown_option(nnodes, node_rank, per_node, address, port, script):
    return f"torchrun --machines={nnodes} {script}"


def with_python(nnodes, node_rank, per_node, address, port, script):
    return f"python {script}"


def with_rendezvous(nnodes, node_rank, per_node, address, port, script):
    return (
        f"torchrun --nnodes {nnodes} --nproc-per-node {per_node} --rdzv-backend c10d "
        f"--rdzv-endpoint {address}:{port} --rdzv-id lesson {script}"
    )


WRONG = (
    Wrong(same_everywhere, "on machine 1, --node-rank is 0"),
    Wrong(script_first, "goes to the script"),
    Wrong(world_size, "4 ranks on each machine, expected 2"),
    Wrong(no_address, "expected 127.0.0.1:"),
    Wrong(unknown_option, "torchrun refuses it"),
    Wrong(with_python, "begins with torchrun"),
)
ALSO_RIGHT = (with_rendezvous,)
STARTER_SAYS = "--nnodes is 1"
