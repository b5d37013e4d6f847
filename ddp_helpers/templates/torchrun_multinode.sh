#!/usr/bin/env bash
# Train on several machines with torchrun: the same line on each of them, in any order.
#
#     ./torchrun_multinode.sh first:29500 2 8 starter.py --epochs 50
#
# means: meet at port 29500 of the machine called `first`, which is one of them; 2 machines; 8 ranks
# on each; the script, and its flags. All machines need the script, the data and the same versions
# at the same place. Checkpoints are written by rank 0, and read by it alone: torchrun gives that rank
# to the machine whose address is the first when they are sorted as text, so not always to `first`.
#
# RUN_ID=other      two runs that meet at one port need different names
# JOIN_SECONDS=300  how long to wait for the other machines
# MAX_RESTARTS=3    after a failure start all ranks again; they go on from the last checkpoint
set -euo pipefail

fail() {
  echo "error: $*" >&2
  exit 2
}

[ $# -ge 4 ] || fail "$# words found, expected: $0 HOST:PORT MACHINES RANKS_EACH SCRIPT [FLAGS]"
endpoint=$1 machines=$2 ranks=$3 script=$4
shift 4
host=${endpoint%:*} port=${endpoint##*:}
[[ $endpoint == *:* && $port =~ ^[0-9]+$ ]] || fail "$endpoint: give HOST:PORT, such as first:29500"
[[ $machines =~ ^[1-9][0-9]*$ ]] || fail "$machines machines: give 1 or more"
[[ $ranks =~ ^([1-9][0-9]*|gpu|cpu)$ ]] || fail "$ranks ranks each: give 1 or more, or gpu"
[ -f "$script" ] || fail "no file $script here: copy it to the same place on all machines"

address=$(getent ahostsv4 "$host" | awk '{ print $1; exit }') || true
[ -n "$address" ] || fail "the name $host can't be resolved: give its address, or mend /etc/hosts"
case $address in
  127.*) [ "$machines" = 1 ] || fail "$host is $address, which every machine takes for itself: give \
the address that the others see" ;;
esac

# Which network card leads there, and what is this machine's own address on it? Without an answer
# the ranks take the card of the machine's name, which on Debian and Ubuntu is often loopback.
command -v ip >/dev/null || fail "no command ip here: apt install iproute2"
device=$(ip -o -4 addr show to "$address" | awk '{ print $2; exit }')
if [ -n "$device" ]; then # this machine is `first` itself
  is_host=true own=$address
else
  is_host=false
  route=$(ip -o -4 route get "$address" 2>/dev/null) || fail "no route to $host ($address): are \
both machines in one network?"
  device=$(sed -n 's/.* dev \([^ ]*\).*/\1/p' <<<"$route")
  own=$(sed -n 's/.* src \([^ ]*\).*/\1/p' <<<"$route")
fi
export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$device}
# = asks for this card: without it NCCL takes all whose names begin so, with eth1 eth10, too.
export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-=$device}
for setting in "GLOO_SOCKET_IFNAME $GLOO_SOCKET_IFNAME" "NCCL_SOCKET_IFNAME $NCCL_SOCKET_IFNAME"; do
  variable=${setting% *} value=${setting#* }
  way_out="unset it, or give $device, the card that leads to $host"
  case $variable$value in
    *,* | *^*) continue ;; # a list of cards, or of others: gloo or NCCL itself chooses
    NCCL_SOCKET_IFNAME[!=]*) found="/sys/class/net/$value*" ;;
    *) found="/sys/class/net/${value#=}" ;;
  esac
  [ "$machines" = 1 ] || [ "${value#=}" != lo ] ||
    fail "$variable is $value, which leads to no other machine: $way_out"
  compgen -G "$found" >/dev/null || fail "$variable is $value, which this machine has not: $way_out"
done
echo "this machine: $own on $device; $machines machines meet at $address:$port" >&2

# A roll call, because torchrun's own error for a machine that is missing has no text.
python - "$is_host" "$address" "$port" "$machines" "${JOIN_SECONDS:-300}" \
  "run ${RUN_ID:-train}: $machines machines, $ranks ranks each" <<'END'
import socket, sys, time

head, address, port, machines, seconds, run = sys.argv[1:]
limit, came = time.monotonic() + float(seconds), {}


def left():
    return max(0.01, limit - time.monotonic())


def call():
    while True:
        try:
            with socket.create_connection((address, int(port)), timeout=left()) as line:
                line.sendall(f"{run}\n".encode())
                line.settimeout(left())
                if answer := line.makefile().readline().strip():
                    return answer
        except OSError as problem:
            if time.monotonic() > limit - 0.5:
                sys.exit(f"error: {address}:{port} did not call back within {seconds} s "
                         f"({problem}): start the same line there, and open the port")
        time.sleep(0.3)


def answer_calls():
    try:
        server = socket.create_server((address, int(port)))
    except OSError as problem:
        sys.exit(f"error: port {port} can't be used here ({problem}): give another one")
    with server:
        while len(came) < int(machines) - 1:
            server.settimeout(left())
            try:
                line, (name, _) = server.accept()
                line.settimeout(min(5, left()))
                theirs = line.makefile().readline().strip()
            except OSError:
                if time.monotonic() > limit - 0.5:
                    sys.exit(f"error: {1 + len(came)} of {machines} machines came to {address}:"
                             f"{port} within {seconds} s ({', '.join([address, *came])}): start "
                             "the same line on the others, or see whether they reach this port")
                continue
            if theirs != run and theirs.startswith("run "):
                line.sendall(f"error: here {run}; there {theirs}: use one line on all\n".encode())
                sys.exit(f"error: {name} has {theirs}; here {run}: use one line on all")
            if theirs == run:
                came[name] = line
        for line in came.values():
            line.sendall(b"go\n")
            line.close()


answer = "go" if machines == "1" else answer_calls() if head == "true" else call()
if answer not in ("go", None):
    sys.exit(answer)
END

# Else a group that meets again after a restart finds the addresses of the start before (gloo, at
# times NCCL) in the store that it shares with torchrun.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# torchrun passes these on; by default it would die of Slurm's SIGUSR1.
export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1

exec torchrun --nnodes="$machines" --nproc_per_node="$ranks" --max_restarts="${MAX_RESTARTS:-0}" \
  --shutdown_timeout="${SHUTDOWN_SECONDS:-120}" \
  --rdzv_backend=c10d --rdzv_endpoint="$address:$port" --rdzv_id="${RUN_ID:-train}" \
  --rdzv_conf="is_host=$is_host,join_timeout=${JOIN_SECONDS:-300}" --local_addr="$own" \
  "$script" "$@"
