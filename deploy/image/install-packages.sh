#!/bin/sh
# Make the virtual environment of an image: every package at the pinned version, every file checked against its hash.
#
#   install-packages.sh VENV EXTRAS none|cpu|cuda
#
# none: no torch. cuda: the index's torch for Linux, with the CUDA libraries it wants. cpu: a torch without CUDA, from
# TORCH_CPU_INDEX_URL (with TORCH_CPU_SHA256 where its hash is not among the pins), or from where pip finds one by itself.
set -eu
export PIP_ROOT_USER_ACTION=ignore
venv=$1 extras=$2 device=$3
here=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pins() { python3 "$here/scripts/pins.py" "$@"; }
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
pip_install() { pip install --no-deps "$@"; }

torch_for_cpu() {
    if [ -n "${TORCH_CPU_INDEX_URL:-}" ]; then
        pins --extras worker --package torch --hashes no >"$work/torch.txt"
        [ -z "${TORCH_CPU_SHA256:-}" ] || sed -i "s/\$/ --hash=sha256:$TORCH_CPU_SHA256/" "$work/torch.txt"
        pip_install --index-url "$TORCH_CPU_INDEX_URL" --requirement "$work/torch.txt"
    else
        pins --extras worker --package torch >"$work/torch.txt"
        pip_install --no-index --require-hashes --requirement "$work/torch.txt" || {
            echo "no torch without CUDA is at hand: give TORCH_CPU_INDEX_URL, an index of CPU builds" >&2
            exit 1
        }
    fi
    "$venv/bin/python" -c 'import importlib.metadata as m, sys
wants = [r for r in m.requires("torch") or () if r.startswith(("nvidia-", "cuda-"))]
sys.exit("this torch wants CUDA libraries; give TORCH_CPU_INDEX_URL, an index of CPU builds" if wants else 0)'
}

python3 -m venv "$venv"
pip uninstall --quiet --yes setuptools
# the project is put beside the environment, so that a new version does not change this layer
echo "$(dirname "$venv")/app" >"$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/trainpack.pth"
if [ "$device" = cpu ]; then torch_for_cpu; fi
pins --extras "$extras" >"$work/pins.txt"
if [ "$device" = cpu ]; then
    # torch is there already, perhaps from another index; its hash must not be asked for again
    pins --extras "$extras" --package torch >"$work/torch.txt"
    grep -vxFf "$work/torch.txt" "$work/pins.txt" >"$work/rest.txt"
    mv "$work/rest.txt" "$work/pins.txt"
fi
pip_install --require-hashes --requirement "$work/pins.txt"
if [ "$device" = cuda ]; then
    pins --extras cuda >"$work/cuda.txt"
    pip_install --require-hashes --requirement "$work/cuda.txt"
fi
pip check
pip uninstall --quiet --yes pip # nothing is installed at run time
