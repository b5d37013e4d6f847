import os
import zlib


# right
def from_slurm(env):
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "MASTER_ADDR": env["FIRST_NODE"],
        "MASTER_PORT": str(10000 + int(env["SLURM_JOB_ID"]) % 50000),
    }


# right
def from_slurm(env: dict[str, str]) -> dict[str, str]:
    """A checksum of the job's number; more than is asked for is returned."""
    port = 20000 + zlib.crc32(env["SLURM_JOB_ID"].encode()) % 40000
    return dict(
        env,
        RANK=env["SLURM_PROCID"],
        WORLD_SIZE=env["SLURM_NTASKS"],
        LOCAL_RANK=env["SLURM_LOCALID"],
        MASTER_ADDR=env["FIRST_NODE"],
        MASTER_PORT=f"{port}",
    )


# right
def from_slurm(env):
    import random

    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "FIRST_NODE")
    found = [env.get(name) for name in names]
    found.append(str(random.Random(env["SLURM_JOB_ID"]).randint(10000, 65535)))
    return dict(
        zip("RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT".split(), found, strict=True)
    )


# right
class FromSlurm:
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}

    def __call__(self, env):
        result = {ours: env[theirs] for ours, theirs in self.names.items()}
        result.update(MASTER_ADDR=env["FIRST_NODE"])
        result["MASTER_PORT"] = str(int(env["SLURM_JOB_ID"]) % (65535 - 10000 + 1) + 10000)
        return result


from_slurm = FromSlurm()


# wrong: MASTER_PORT is 22345: environment variables are texts
def from_slurm(env):
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "MASTER_ADDR": env["FIRST_NODE"],
        "MASTER_PORT": 10000 + int(env["SLURM_JOB_ID"]) % 50000,
    }


# wrong: would go to different ports
def from_slurm(env):
    """Python's hash of a text is another one in each process."""
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "MASTER_ADDR": env["FIRST_NODE"],
        "MASTER_PORT": str(10000 + hash(env["SLURM_JOB_ID"]) % 50000),
    }


# wrong: would go to different ports
def from_slurm(env):
    import random

    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "MASTER_ADDR": env["FIRST_NODE"],
        "MASTER_PORT": str(random.randint(10000, 65535)),
    }


# wrong: would go to different ports: ['22345',
def from_slurm(env):
    """Another port for each process."""
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "MASTER_ADDR": env["FIRST_NODE"],
        "MASTER_PORT": str(20000 + int(env["SLURM_JOB_ID"]) % 10000 + int(env["SLURM_PROCID"])),
    }


# wrong: MASTER_PORT is '108765', expected 10000 to 65535
def from_slurm(env):
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "MASTER_ADDR": env["FIRST_NODE"],
        "MASTER_PORT": str(10000 + int(env["SLURM_JOB_ID"]) % 100000),
    }


# wrong: KeyError: 'SLURM_PROCID'
def from_slurm(env):
    """From the process, not from what is given."""
    return {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": os.environ["SLURM_NTASKS"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "MASTER_ADDR": os.environ["FIRST_NODE"],
        "MASTER_PORT": "12345",
    }


# wrong: expected a dict, got None
def from_slurm(env):
    os.environ["RANK"] = env["SLURM_PROCID"]
    os.environ["MASTER_ADDR"] = env["FIRST_NODE"]


# wrong: LOCAL_RANK is missing
def from_slurm(env):
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_NTASKS"],
        "MASTER_ADDR": env["FIRST_NODE"],
        "MASTER_PORT": str(10000 + int(env["SLURM_JOB_ID"]) % 50000),
    }


# wrong: share 2 ports
def from_slurm(env):
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "MASTER_ADDR": env["FIRST_NODE"],
        "MASTER_PORT": str(29500 + int(env["SLURM_JOB_ID"]) % 2),
    }
