python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl && export PYTHONPATH=/tmp/site:$PWD || exit 1
mkdir -p /tmp/zoo/base /tmp/given; cp -r workbench/assets/* /tmp/given/; cp -r workbench/assets/tiny /tmp/zoo/base/teacher; rm -f /tmp/zoo/base/teacher/{portrait,text,editing}.safetensors
C="size=full model=random:blocks=8 mix=5:5 engine=ours repeats=3"
(bash half_done/special.sh 0 470 text; CUDA_VISIBLE_DEVICES=0 OMP_NUM_THREADS=6 timeout 150 python3 half_done/compile_profile.py dynpre-noauto $C > $OUT/c0.log 2>&1) &
a=$!
bash half_done/special.sh 1 470 portrait & b=$!
bash half_done/special.sh 1 470 editing & c=$!
wait $b $c
CUDA_VISIBLE_DEVICES=1 OMP_NUM_THREADS=6 timeout 170 python3 half_done/compile_profile.py plain $C > $OUT/c1.log 2>&1
wait $a
grep -h "warm_up\|iterations" $OUT/c?.log; tail -3 $OUT/c?.log
