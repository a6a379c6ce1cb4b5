# Sourced in the root of this tree on a GPU machine, with build/gpu-bundle carried along: makes the tree importable as the
# package, with the compiled libraries and the peers' wheels.
cp build/gpu-bundle/*.so deepseek_fast/
ln -sfn ../kernels deepseek_fast/kernels
if ls build/gpu-bundle/*.whl >/dev/null 2>&1; then
  python3 -m pip install -q --no-index --no-deps --no-compile --target build/gpu-peers build/gpu-bundle/*.whl
fi
export PYTHONPATH="$PWD:$PWD/build/gpu-peers" OMP_WAIT_POLICY=PASSIVE
