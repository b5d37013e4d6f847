"""Slurm's variables, as torch wants them."""

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong

EXERCISE = Exercise(
    title="From Slurm to torch",
    name="from_slurm",
    task="`env` holds what srun gives each process: SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID, "
    "SLURM_JOB_ID and FIRST_NODE, the name of the first machine. Return a dict of texts with RANK, "
    "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. The port must be the same for all "
    "processes of a job, usually another one for another job, and between 10000 and 65535.",
    hints=(
        "Three of the five are only other names for the same thing.",
        "All processes of a job know one number that no other job has.",
        "A port such as 10000 + job id modulo 50000. Environment variables are texts: str().",
    ),
    lesson="init_distributed_mode() reads Slurm's variables itself.",
    minutes=8,
)
JOBS = (
    (4, 2, "node07", 812345),
    (4, 2, "node07", 812346),
    (2, 1, "gpu-a", 99),
    (2, 2, "n1", 198765),
)


def starter(env):
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
    }


def solution(env):
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "MASTER_ADDR": env["FIRST_NODE"],
        "MASTER_PORT": str(10000 + int(env["SLURM_JOB_ID"]) % 50000),
    }


FEW = 50  # ports for all jobs


def variables(rank, tasks, per_node, first, job):
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(tasks),
        "SLURM_LOCALID": str(rank % per_node),
        "SLURM_JOB_ID": str(job),
        "FIRST_NODE": first,
    }


def on_rank(answer):
    return [[answer(variables(rank, *job)) for rank in range(job[0])] for job in JOBS]


def ports_of(answer):
    """Of many jobs, one after the other: some that are close to a border are among them."""
    jobs = range(55_000, 66_000)
    return [int(answer(variables(0, 1, 1, "n1", job))["MASTER_PORT"]) for job in jobs]


def check(ranks):
    # two processes: what is drawn or kept in one of them is not known in the other
    for values in ranks.run(on_rank, 2, group=False):
        for job, found in zip(JOBS, values, strict=True):
            for rank, got in enumerate(found):
                judge(variables(rank, *job), got)
    one, other = ranks.run(on_rank, 2, group=False)
    ports = [found["MASTER_PORT"] for found in (*one[0], *other[0])]
    if len(set(ports)) > 1:
        raise NotYet(
            f"the processes of one job would go to different ports: {sorted(set(ports))[:3]}"
        )
    if one[0][0]["MASTER_PORT"] == one[1][0]["MASTER_PORT"]:
        raise NotYet("two jobs on the same machine would both take port " + ports[0])
    many = ranks.run(ports_of, 1, group=False)[0]
    beyond = [port for port in many if not 10000 <= port <= 65535]
    if beyond:
        raise NotYet(f"for some jobs MASTER_PORT is {beyond[0]}, expected 10000 to 65535")
    if len(set(many)) < FEW:
        raise NotYet(
            f"{len(many)} jobs, one after the other, share {len(set(many))} ports: two that run on "
            "the same machine would often take the same one"
        )


def judge(env, got):
    if not isinstance(got, dict):
        raise NotYet(f"expected a dict, got {got!r}")
    wanted = {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "MASTER_ADDR": env["FIRST_NODE"],
    }
    for name in (*wanted, "MASTER_PORT"):
        if name not in got:
            raise NotYet(f"{name} is missing")
        if not isinstance(got[name], str):
            raise NotYet(f"{name} is {got[name]!r}: environment variables are texts")
        if name in wanted and got[name] != wanted[name]:
            raise NotYet(f"for process {env['SLURM_PROCID']}, {name} is {got[name]!r}")
    if not got["MASTER_PORT"].isdigit() or not 10000 <= int(got["MASTER_PORT"]) <= 65535:
        raise NotYet(f"MASTER_PORT is {got['MASTER_PORT']!r}, expected 10000 to 65535")


def fixed_port(env):
    return solution(env) | {"MASTER_PORT": "29500"}


def random_port(env):
    import random

    return solution(env) | {"MASTER_PORT": str(random.randrange(10000, 65535))}


def numbers(env):
    return {name: int(v) if v.isdigit() else v for name, v in solution(env).items()}


def local_is_global(env):
    return solution(env) | {"LOCAL_RANK": env["SLURM_PROCID"]}


def job_is_port(env):
    return solution(env) | {"MASTER_PORT": env["SLURM_JOB_ID"]}


def by_table(env):
    names = {"RANK": "PROCID", "WORLD_SIZE": "NTASKS", "LOCAL_RANK": "LOCALID"}
    found = {name: env[f"SLURM_{theirs}"] for name, theirs in names.items()}
    port = 15000 + int(env["SLURM_JOB_ID"][-4:])
    return found | {"MASTER_ADDR": env["FIRST_NODE"], "MASTER_PORT": f"{port}"}


WRONG = (
    Wrong(fixed_port, "would both take port 29500"),
    Wrong(random_port, "would go to different ports"),
    Wrong(numbers, "environment variables are texts"),
    Wrong(local_is_global, "for process 2, LOCAL_RANK is '2'"),
    Wrong(job_is_port, "expected 10000 to 65535"),
)
ALSO_RIGHT = (by_table,)
STARTER_SAYS = "MASTER_ADDR is 'localhost'"
