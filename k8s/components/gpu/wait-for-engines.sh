#!/bin/sh
# Until the Job has made the engines of the GPU that this pod was given. It goes at once when it is told to: the Job may
# need this very GPU.
set -eu
trap 'exit 143' TERM
key=$(sh /etc/tags/engines/engine-key.sh)
until [ -d "/engines/$key" ]; do
    echo "waiting for $key: has the Job compile-engines run on this kind of GPU?"
    sleep 15 & wait $!
done
