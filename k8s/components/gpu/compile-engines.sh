#!/bin/sh
# Build this GPU's engines where they are not there yet. They appear under their name only when they are whole: each
# plan was compared with ONNX Runtime, and the repository is renamed into place.
set -eu
key=$(sh /etc/tags/engines/engine-key.sh)
if [ -d "/engines/$key" ]; then
    echo "$key: there already"
    exit 0
fi
work=$(mktemp -d "/engines/.making-XXXXXX")
trap 'rm -rf "$work"' EXIT
python3 -m export tensorrt --bundle /bundle --out "$work/plans" --repository "$work/repository" \
    --timing-cache "/engines/timing-$TRITON_RELEASE.cache" --precision "$PRECISION" --batch "$BATCH" \
    --workspace-gib "$WORKSPACE_GIB"
chmod -R a+rX "$work/repository"
mv -T "$work/repository" "/engines/$key" || [ -d "/engines/$key" ]
echo "$key: made"
