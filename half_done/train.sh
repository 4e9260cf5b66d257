# train.sh GPU SECONDS PLAN : a stage of the hard world from the assets in $ROOT, its newest weights to $OUT
export CUDA_VISIBLE_DEVICES=$1 OMP_NUM_THREADS=4
mkdir -p /tmp/given && cp -r $ROOT/workbench/assets/* /tmp/given/
cd $ROOT
timeout -k 20 $2 python3 -m studies.tiny_model.build $3 > $OUT/train.log 2>&1; echo "train rc $?"
timeout -k 5 60 python3 half_done/grab.py /tmp/zoo/teacher /tmp/given $OUT give 2>&1 | grep -v Warn
tail -c 300 /tmp/zoo/teacher/metrics.jsonl
