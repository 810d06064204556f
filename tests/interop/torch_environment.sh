#!/usr/bin/env bash
# torch_environment.sh VENV_DIR: an environment with PyTorch's current wheel, to be used on the CPU. Of its dependencies only those for all platforms are
# installed: without the CUDA libraries it is a quarter of the download and of the disk (torch_stand_ins.py has what the loader wants of them). Where that
# does not suffice, the wheel gets all that it asks for. Exit code 77 as python_environment.sh; that also runs commands in it.
set -euo pipefail
environment=$1
folder=$(dirname "$(readlink -f "$0")")

bash "$folder/python_environment.sh" "$environment" --no-deps "torch>=2.10" || exit $?
finished=$environment/torch.txt
[ ! -e "$finished" ] || exit 0

python=$environment/bin/python
pip=("$python" -m pip install --disable-pip-version-check --quiet --no-compile --only-binary :all:)
mapfile -t requirements < <("$python" -c '
import importlib.metadata
print("\n".join(line for line in importlib.metadata.requires("torch") if ";" not in line))')
"${pip[@]}" "${requirements[@]}" >"$environment.log" 2>&1 || { cat "$environment.log"; exit 1; }  # it also says what is left out
"$python" "$folder/torch_stand_ins.py" "$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')" || true

imports() { bash "$folder/python_environment.sh" "$environment" --run python -W ignore -c 'import torch; print("PyTorch", torch.__version__)'; }
if ! imports; then
  rm -rf "$environment"
  bash "$folder/python_environment.sh" "$environment" "torch>=2.10" || exit $?
  imports
fi
touch "$finished"
