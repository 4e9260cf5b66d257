# train.sh GPU SECONDS PLAN : a stage from the assets in $ROOT; its newest weights are in $OUT every minute, so that a call
# that is cut off loses a minute (one was, with eight minutes of training).
export CUDA_VISIBLE_DEVICES=$1 OMP_NUM_THREADS=4
mkdir -p /tmp/given && cp -r $ROOT/workbench/assets/* /tmp/given/
cd $ROOT
(while sleep 50; do OMP_NUM_THREADS=1 nice timeout 40 python3 half_done/grab.py /tmp/zoo/teacher /tmp/given $OUT > /dev/null 2>&1; cp /tmp/zoo/teacher/metrics.jsonl $OUT/; done) &
saving=$!
timeout -k 20 $2 python3 -m studies.tiny_model.build $3 > $OUT/train.log 2>&1; echo "train rc $?"
kill $saving
timeout -k 5 60 python3 half_done/grab.py /tmp/zoo/teacher /tmp/given $OUT give 2>&1 | grep -v Warn
tail -c 300 /tmp/zoo/teacher/metrics.jsonl
