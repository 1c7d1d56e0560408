#!/usr/bin/env bash
# Use one lease of a GPU whole: the most telling measurements first, each with its own deadline and journal.
#
#     bash bench/gpu/lease.sh                                           # on the lent machine: 540 seconds
#     bash bench/gpu/lease.sh --device sim --layers 2 --seconds 300     # a dry run, without any GPU
#
# bench/gpu/README.md lists the parts, and the archives that have to be made before. All results are in $OUT. Each part leaves
# its results there when it ends, so a lease that is cut off loses one part only.
set -uo pipefail
cd "$(dirname "$0")/../.."

device=CUDA0 seconds=540 layers=0 archive=build/lease cores=8 copiers=6 only="" backend=""
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=$2 ;;     # ggml's name of the device
        --seconds) seconds=$2 ;;   # of the whole run
        --layers) layers=$2 ;;     # of small twins; 0 for whole models
        --backend) backend=$2 ;;   # library of a backend, if no archive has one
        --archive) archive=$2 ;;   # folder that bench.gpu.pack has filled
        --cores) cores=$2 ;;       # of the consumer's machine
        --copiers) copiers=$2 ;;   # threads that keep its memory busy
        --only) only=" $2 " ;;     # names of parts, separated by spaces; all without it
        *) echo "lease.sh: there is no option $1" >&2; exit 2 ;;
    esac
    shift 2
done
long=4096 deep=32768 small=""
if [ "$layers" != 0 ]; then
    long=128 deep=256 small="--generate 8 --warm 8" # a dry run tries every step, and no speed
fi
out=${OUT:-build/lease-out}
work=$(mktemp -d)
twins=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "$work")")
trap 'rm -rf "$work" "$twins"' EXIT
mkdir -p "$out" "$work"/{site,main,consumer,depth,home/data/backends}
export PYTHONUNBUFFERED=1 EDGEMOE_HOME=$work/home PYTHONPATH=$work/site:$PWD
export small long device layers backend archive cores copiers work twins
exec > >(tee "$out/lease.log") 2>&1

# Run `edgemoe` or one of the bench's programs; $DEADLINE is in seconds.
edgemoe() { python3 -m edgemoe.cli "$@"; }
measure() { # FOLDER OPTION...: a folder has one journal
    local folder=$work/$1
    shift
    cp -n "$archive"/routing-*.npz "$folder/"
    python3 -m bench.gpu --device "$device" ${backend:+--backend "$backend"} --layers "$layers" --folder "$folder" \
        --twins "$twins" --deadline "$DEADLINE" $small "$@"
}
file_of() { echo "$twins/$1$([ "$layers" = 0 ] || echo "-$layers-layers")-twin.gguf"; }
export -f edgemoe measure file_of

# part NAME SECONDS COMMAND...: run a part for at most so many seconds, and never beyond the lease.
part() {
    local name=$1 limit=$2 began=$SECONDS left=$((seconds - SECONDS - 10))
    shift 2
    if [ -n "$only" ] && [[ $only != *" $name "* ]]; then return; fi
    if [ "$left" -lt 20 ]; then
        echo "== $name: no time is left"
        return
    fi
    [ "$limit" -gt "$left" ] && limit=$left
    echo "== $name: at most $limit of $left seconds"
    DEADLINE=$limit timeout --kill-after 5 $((limit + 5)) bash -c '"$@"' part "$@" | grep --line-buffered -v '^not measured'
    echo "== $name: ended with ${PIPESTATUS[0]} after $((SECONDS - began)) s"
    tar -C "$work" -czf "$out/results.tar.gz" --exclude='*.np[yz]' main consumer depth
}

# ---- the machine: the packages that its Python lacks, the core, the backend, the CUDA libraries ----

unpack() {
    for file in "$archive"/site.tar.xz; do [ -f "$file" ] && tar -C "$work/site" -xf "$file"; done
    for file in "$archive"/backend.tar.xz; do [ -f "$file" ] && tar -C "$work/home/data/backends" -xf "$file"; done
    [ -f "$archive/edgemoe_core.so" ] && cp "$archive/edgemoe_core.so" edgemoe/engine/
    nproc
    free -g
    nvidia-smi --query-gpu=name,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current --format=csv,noheader
    return 0
}
cublas=$(find /usr/local/cuda*/ /opt "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" -name 'libcublas.so.1*' 2>/dev/null | head -1)
cudart=$(find /usr/local/cuda*/ /opt "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" -name 'libcudart.so.1*' 2>/dev/null | head -1)
export LD_LIBRARY_PATH=${cublas:+$(dirname "$cublas")}:${cudart:+$(dirname "$cudart")}:${LD_LIBRARY_PATH:-}
export -f unpack

# ---- the parts, the most telling first ----

consumer() {
    grep '"kind": "parity"' "$work/main/"*.jsonl | grep '"small models"' >"$work/consumer/$(basename "$work"/main/*.jsonl)" || true
    local link=""
    [[ $device == CUDA* ]] && link=--link
    local note="$cores of $(nproc) cores; beside them $copiers threads copy within the RAM${link:+, one to the card}."
    taskset -c "$cores-$(($(nproc) - 1))" python3 -m bench.gpu.load --copiers "$copiers" $link -- \
        taskset -c "0-$((cores - 1))" bash -c 'measure "$@"' measure consumer --threads "$cores" --note "$note" "$@"
}
setup() {
    edgemoe setup
    edgemoe doctor
}
stop() { python3 bench/cancel.py "$(file_of gpt-oss-20b)" --device "$device" ${backend:+--backend "$backend"} --vram 25% --within 0.5 --stops 10; }
forecast() { python3 bench/fit.py --model "$(file_of gpt-oss-20b)" --device "$device" --threads "$(nproc)"; }
mixtral() { # the RAM disk is too small for all twins
    rm -f "$twins"/*.gguf
    measure main --models mixtral-8x7b "$@"
}
export -f consumer setup stop forecast mixtral

part unpack 40 unpack
part setup 30 setup
part gpt-oss 130 measure main --models gpt-oss-20b --shares 25 --only decode,first,prompts --prompts "$long"
part deepseek 100 measure main --models deepseek-v2-lite --shares 25 --only decode,first,prompts --prompts "$long"
part consumer 130 consumer --models qwen3-30b-a3b --vram 8,12,16 --only decode,first --prompts "$long"
part qwen3 80 measure main --models qwen3-30b-a3b --shares 25,50 --only decode,first,prompts --prompts "$long"
part hot 60 measure main --models gpt-oss-20b,deepseek-v2-lite --shares 100 --only decode,first --prompts "$long"
part switches 60 measure main --models gpt-oss-20b,deepseek-v2-lite --shares 25 --only switches --prompts "$long"
part stop 30 stop
part forecast 60 forecast
part depth 90 measure depth --models qwen3-30b-a3b --shares 25 --only depth --depth "$deep" --kv q8_0 --prompts "$long"
part cycles 60 measure main --models gpt-oss-20b --shares 25 --soak-cycles 200 --prompts "$long"
part rest 600 measure main --models gpt-oss-20b,deepseek-v2-lite,qwen3-30b-a3b --prompts "$long"
part mixtral 600 mixtral --prompts "$long"

# ---- the end: the tables, of which the log's last lines are an extract ----

report() { # FOLDER OPTION...
    local folder=$1
    shift
    compgen -G "$work/$folder/*.jsonl" >/dev/null || return
    python3 -m bench.gpu --device "$device" --layers "$layers" --folder "$work/$folder" --twins "$twins" --report $small "$@" >/dev/null
    cp "$work/$folder/table.md" "$out/$folder.md"
    grep -E '^(###|PASS|MISS|- (PASS|MISS)|\| [0-9])' "$out/$folder.md"
}
report consumer --models qwen3-30b-a3b --vram 8,12,16 --prompts "$long"
report depth --models qwen3-30b-a3b --shares 25 --depth "$deep" --prompts "$long"
report main --prompts "$long"
tar -C "$work" -czf "$out/results.tar.gz" --exclude='*.np[yz]' main consumer depth
