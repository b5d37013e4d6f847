import io
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist


# wrong: the run died just before its os.rename
def save(state, path):
    if dist.get_rank() == 0:
        torch.save(state, path + ".new")
        if os.path.exists(path):
            os.rename(path, path + ".old")
        os.rename(path + ".new", path)
    dist.barrier()


# wrong: the file itself is opened to be written
def save(state, path):
    if dist.get_rank() == 0:
        data = io.BytesIO()
        torch.save(state, data)
        Path(path).write_bytes(data.getvalue())
        assert torch.load(path)["epoch"] == state["epoch"]
    dist.barrier()


# wrong: the file itself is opened to be written
def save(state, path):
    if dist.get_rank() == 0:
        torch.save(state, path + ".tmp")
        shutil.copy(path + ".tmp", path)
        os.remove(path + ".tmp")
    dist.barrier()


# wrong: the run died just before its os.rename
def save(state, path):
    if dist.get_rank() == 0:
        torch.save(state, path + ".tmp")
        if os.path.exists(path):
            os.remove(path)
        os.rename(path + ".tmp", path)
    dist.barrier()


# wrong: the file itself is opened to be written
def save(state, path):
    if dist.get_rank() == 0:
        data = io.BytesIO()
        torch.save(state, data)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, data.getvalue())
        os.close(fd)
    dist.barrier()


# wrong: can't read the file after save
def save(state, path):
    dist.barrier()
    if dist.get_rank() == 0:
        torch.save(state, path + ".tmp")
        os.replace(path + ".tmp", path)


# right
def save(state, path):
    if dist.get_rank() == 0:
        folder = Path(path).parent
        with tempfile.TemporaryDirectory(dir=folder) as unfinished:
            torch.save(state, Path(unfinished, "x"))
            os.replace(Path(unfinished, "x"), path)
    dist.barrier()


# right
def save(state, path):
    if dist.get_rank() == 0:
        torch.save(state, path + ".tmp")
        subprocess.run(["mv", path + ".tmp", path], check=True)
    torch.distributed.all_reduce(torch.zeros(1))


# right
def save(state, path):
    """With the file's content on the disk before its name."""
    if dist.get_rank() == 0:
        folder = os.path.dirname(path)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    dist.barrier()


# right
class Save:
    def __call__(self, state, path):
        path, done = Path(path), torch.zeros(1)
        unfinished = path.with_suffix(f".{os.getpid()}")
        if dist.get_rank() == 0:
            try:
                torch.save(state, unfinished)
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)
        dist.broadcast(done, src=0)


save = Save()


# wrong: writes: only rank 0 should
def save(state, path):
    """Each rank writes."""
    torch.save(state, f"{path}.{dist.get_rank()}")
    os.replace(f"{path}.{dist.get_rank()}", path)
    dist.barrier()


# wrong: can't read the file after save
def save(state, path):
    """An empty promise."""
    dist.barrier()


# wrong: expected 'f' to be string, path
def save(state, path):
    if dist.get_rank() == 0:
        torch.save(path + ".tmp", state)
        os.replace(path + ".tmp", path)
    dist.barrier()


# wrong: can't read the file after save
def save(state, path):
    if dist.get_rank() == 0:
        torch.save(state, path + ".tmp")
        os.replace(path + ".tmp", path)
        dist.barrier()


# wrong: what is read back is not what was saved
def save(state, path):
    """The weights alone."""
    if dist.get_rank() == 0:
        torch.save({"weight": state["weight"]}, path + ".tmp")
        os.replace(path + ".tmp", path)
    dist.barrier()


# right
def save(state, path):
    if dist.get_rank() == 0:
        old = f"{path}.old"
        if os.path.exists(old):
            os.unlink(old)
        if os.path.exists(path):
            os.link(path, old)
        torch.save(state, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)
    dist.barrier()


# wrong: gets its name before all of it is written
def save(state, path):
    if dist.get_rank() == 0:
        out = io.BytesIO()
        torch.save(state, out)
        with open(f"{path}.tmp", "wb", buffering=1 << 24) as f:
            f.write(out.getvalue())
            os.replace(f"{path}.tmp", path)
    dist.barrier()


# wrong: written over those of the first checkpoint
def save(state, path):
    if dist.get_rank() == 0:
        torch.save(state, f"{path}.tmp")
        subprocess.run(["cp", f"{path}.tmp", f"{path}"], check=True)
    dist.barrier()


# wrong: still reads the old file after save
def save(state, path):
    if dist.get_rank() == 0:
        torch.save(state, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)
    while not os.path.exists(path):
        time.sleep(0.01)
