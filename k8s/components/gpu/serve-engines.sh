#!/bin/sh
set -eu
key=$(sh /etc/tags/engines/engine-key.sh)
exec sh /etc/tags/scripts/serve-triton.sh --model-repository="/engines/$key" "$@"
