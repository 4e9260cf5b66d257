# special.sh GPU SECONDS NAME : one specialist over the base of workbench/assets
export CUDA_VISIBLE_DEVICES=$1 OMP_NUM_THREADS=4
timeout -k 20 $2 python3 -m studies.tiny_model.build half_done/specialists.yaml "only=[$3]" $4 > $OUT/$3.log 2>&1; echo "$3 rc $?"
cp /tmp/zoo/$3/$3.safetensors $OUT/ || (cd /tmp/zoo/$3/checkpoints && tar czf $OUT/$3.tgz $(ls | tail -1))
tail -qn1 /tmp/zoo/$3/metrics.jsonl | cut -c1-300
