#!/bin/sh
set -eu
key=$(sh /etc/tags/engines/engine-key.sh)
exec tritonserver --model-repository="/engines/$key" "$@"
