#!/bin/sh
# API keys for the first start, on the data volume: hashes in api-keys, the keys themselves in files that only this user
# reads. Nothing is printed. Read them with `kubectl exec`, hand them out, then delete the key files; the hashes stay.
set -eu
umask 077
mkdir -p /data/access
cd /data/access
until mkdir making 2>/dev/null; do  # one pod at a time; a lock that a dead pod left is broken after a minute
    [ -s api-keys ] && exit 0
    [ -n "$(find making -maxdepth 0 -mmin +1)" ] && rmdir making
    sleep 1
done
trap 'rmdir making' EXIT
[ -s api-keys ] && exit 0
: > api-keys.part
tags key new admin --role segment --role push --role read --role admin > admin
tags key new pacs --role push > pacs
tags key new prometheus > prometheus
tags key new watchdog --role segment --role read > watchdog
for name in admin pacs prometheus watchdog; do
    tail -n 1 "$name" >> api-keys.part
    head -n 1 "$name" > "first-key-$name"
    rm "$name"
done
mv first-key-watchdog key-watchdog  # the worker reads it at each start
mv api-keys.part api-keys
