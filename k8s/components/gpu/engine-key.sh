#!/bin/sh
# The name of the engines that this GPU, this release and this bundle need, such as
# sm9.0-NVIDIA-H100-80GB-HBM3_26.04-py3_1f2e3d4c5b6a. Plans of one never run on another.
set -eu
gpu=$(nvidia-smi --query-gpu=compute_cap,name --format=csv,noheader --id=0)  # on its own: a pipe would hide its failure
gpu=$(echo "$gpu" | tr -c 'A-Za-z0-9.\n' '-' | tr -s '-')
bundle=$(sha256sum /bundle/bundle.json | cut -c1-12)
echo "sm${gpu}_${TRITON_RELEASE}_${bundle}"
