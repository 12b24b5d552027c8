#!/bin/bash
#SBATCH --job-name=rlft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#
# A Ray cluster on the nodes of a Slurm job, and an rlft command on it. From a folder that all nodes share:
#
#   sbatch deploy/slurm.sh train configs/quickstart.yaml rollout.workers=4
#   sbatch deploy/slurm.sh resume runs/quickstart
#
# Two minutes before the time is over the run is asked to save what it has; the second command goes on with it.
# RLFT_ENV is the virtual environment, .venv here if it is not set.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: sbatch deploy/slurm.sh COMMAND CONFIG|RUN [key=value ...]" >&2
    exit 2
fi
export PATH="${RLFT_ENV:-$PWD/.venv}/bin:$PATH"

# A token of this job's own: other users of these nodes reach the cluster's ports, too. It goes by the environment.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0

# This script runs on the first node, which is the head. Ports of its own, as another job's head may run here.
address=$(hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 2000 * 5))
ray start --head --block --node-ip-address="$address" --port="$port" \
    --dashboard-host=127.0.0.1 --dashboard-port=$((port + 1)) --ray-client-server-port=$((port + 2)) \
    --dashboard-agent-listen-port=$((port + 3)) --temp-dir="/tmp/rlft-$SLURM_JOB_ID" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats &
head=$!

others=$((SLURM_JOB_NUM_NODES - 1))
workers=
driver=
# shellcheck disable=SC2329  # the trap calls it
end() {
    trap - EXIT
    [ -z "$workers" ] || kill "$workers" 2>/dev/null || true
    kill "$head" 2>/dev/null || true
    wait || true
    rm -rf "/tmp/rlft-$SLURM_JOB_ID"
}
trap end EXIT
trap '[ -z "$driver" ] || kill -TERM "$driver"' TERM

tries=0
until (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null; do
    kill -0 "$head" 2>/dev/null || { echo "the head of the Ray cluster did not start" >&2; exit 1; }
    tries=$((tries + 1))
    [ "$tries" -le 120 ] || { echo "the head of the Ray cluster does not answer after 2 minutes" >&2; exit 1; }
    sleep 1
done
if [ "$others" -gt 0 ]; then
    srun --nodes="$others" --ntasks="$others" --exclude="$SLURMD_NODENAME" --export=ALL \
        ray start --block --address="$address:$port" --dashboard-agent-listen-port=$((port + 3)) \
        --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats &
    workers=$!
fi

rlft "$@" ray_address="$address:$port" &
driver=$!
# `wait` ends when the signal comes, before the run has saved what it has.
code=0
wait "$driver" || code=$?
while kill -0 "$driver" 2>/dev/null; do
    code=0
    wait "$driver" || code=$?
done
exit "$code"
