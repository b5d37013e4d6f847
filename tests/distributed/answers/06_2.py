# right
def command(nnodes, node_rank, per_node, address, port, script):
    return (
        f"torchrun --nnodes={nnodes} --node-rank={node_rank} --nproc-per-node={per_node} "
        f"--master-addr={address} --master-port={port} {script}"
    )


# right
def command(nnodes, node_rank, per_node, address, port, script):
    """Underscores, and no equals signs."""
    options = dict(nnodes=nnodes, node_rank=node_rank, nproc_per_node=per_node)
    options |= dict(master_addr=address, master_port=port)
    return " ".join(["torchrun", *(f"--{k} {v}" for k, v in options.items()), script])


# right
def command(nnodes, node_rank, per_node, address, port, script):
    """Over several lines, as in a script of the shell."""
    return f"""torchrun \\
        --nnodes={nnodes} \\
        --node_rank={node_rank} \\
        --nproc_per_node={per_node} \\
        --rdzv-backend=static --rdzv-endpoint={address}:{port} \\
        {script}"""


# right
def command(nnodes, node_rank, per_node, address, port, script):
    return (
        f"python -m torch.distributed.run --nnodes={nnodes}:{nnodes} --nproc-per-node={per_node} "
        f"--rdzv-backend=c10d --rdzv-endpoint={address}:{port} --rdzv-id=42 {script}"
    )


# right
def command(nnodes, node_rank, per_node, address, port, script):
    return (
        f"OMP_NUM_THREADS=1 torchrun --nnodes {nnodes} --node-rank {node_rank} "
        f"--nproc-per-node {per_node} --master-addr '{address}' --master-port {port} '{script}'"
    )


# wrong: on machine 1, --node-rank is 0
def command(nnodes, node_rank, per_node, address, port, script):
    return (
        f"torchrun --nnodes={nnodes} --node-rank=0 --nproc-per-node={per_node} "
        f"--master-addr={address} --master-port={port} {script}"
    )


# wrong: 4 ranks on each machine, expected 2
def command(nnodes, node_rank, per_node, address, port, script):
    return (
        f"torchrun --nnodes={nnodes} --node-rank={node_rank} --nproc-per-node={nnodes * per_node} "
        f"--master-addr={address} --master-port={port} {script}"
    )


# wrong: --nnodes=2 goes to the script
def command(nnodes, node_rank, per_node, address, port, script):
    return (
        f"torchrun {script} --nnodes={nnodes} --node-rank={node_rank} "
        f"--nproc-per-node={per_node} --master-addr={address} --master-port={port}"
    )


# wrong: expected one text that begins with torchrun
def command(nnodes, node_rank, per_node, address, port, script):
    return ["torchrun", f"--nnodes={nnodes}", f"--nproc-per-node={per_node}", script]


# wrong: expected one text that begins with torchrun, got 'mpirun
def command(nnodes, node_rank, per_node, address, port, script):
    return (
        f"mpirun -np {nnodes * per_node} -x MASTER_ADDR={address} -x MASTER_PORT={port} "
        f"python {script}"
    )


# wrong: expected 127.0.0.1:
def command(nnodes, node_rank, per_node, address, port, script):
    return (
        f"torchrun --nnodes={nnodes} --node-rank={node_rank} --nproc-per-node={per_node} "
        f"--master-addr={address} {script}"
    )


# wrong: torchrun refuses it: unrecognized arguments: --nodes=2 --rank=0
def command(nnodes, node_rank, per_node, address, port, script):
    return (
        f"torchrun --nodes={nnodes} --rank={node_rank} --nproc-per-node={per_node} "
        f"--master-addr={address} --master-port={port} {script}"
    )


# wrong: torchrun takes 'train.py' for the script
def command(nnodes, node_rank, per_node, address, port, script):
    return (
        f"torchrun --nnodes={nnodes} --node-rank={node_rank} --nproc-per-node={per_node} "
        f"--master-addr={address} --master-port={port} train.py"
    )
