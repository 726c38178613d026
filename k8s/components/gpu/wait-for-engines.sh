#!/bin/sh
# Until the Job has made the engines of the GPU that this pod was given.
set -eu
key=$(sh /etc/tags/engines/engine-key.sh)
until [ -d "/engines/$key" ]; do
    echo "waiting for $key: has the Job compile-engines run on this kind of GPU?"
    sleep 15
done
