#!/bin/sh
# Teach the embedded model a task it does not know, and prove it on records it never saw: a few minutes on two cores.
#
#     sh examples/adapt/adapt.sh [FOLDER]
#
# FOLDER (adapted, by default) gets the records, the run with its report.md, and the merged model. An interrupted run
# goes on when started again.
set -eu
here=$(dirname "$0")
folder=${1:-adapted}
python=${PYTHON:-python3}
question="What is the status of the machine?"

command -v tianquan > /dev/null && "$python" -c "import torch, accelerate, peft" 2> /dev/null || {
    echo "needs tianquan and what trains: pip install torch '.[train]' in the source folder, and that environment active" >&2
    exit 2
}
[ -f "$folder/held_out.jsonl" ] || "$python" "$here/make_records.py" "$folder"
tianquan data check "$folder/train.jsonl" --model embedded
[ -d "$folder/run/adapter" ] || tianquan finetune embedded --data "$folder/train.jsonl" --evaluation-data "$folder/held_out.jsonl" \
    --output "$folder/run" --epochs 10 --batch-size 16 --learning-rate 1e-3
tianquan evaluate embedded --adapter "$folder/run/adapter" --data "$folder/held_out.jsonl" \
    --precision float32 --precision int8 --precision int4 --markdown "$folder/run/precisions.md"
# One folder without an adapter, in four bits that are rounded for the new records: to nearest they can lose what was learned.
[ -d "$folder/model" ] || tianquan merge embedded "$folder/run/adapter" "$folder/model"
[ -d "$folder/int4" ] || tianquan quantize "$folder/model" "$folder/int4" --calibrate "$folder/train.jsonl"
tianquan evaluate "$folder/int4" --data "$folder/held_out.jsonl" --markdown "$folder/run/int4.md"
tianquan chat "$folder/int4" --image "$folder/held_out/0000.png" "$question"
