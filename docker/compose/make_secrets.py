"""Passwords and keys of the compose stack, made once: `make_secrets.py DIRECTORY`, in the gateway's image.

Each service reads a folder of its own (mode 0700, its user). What is there already is left alone, so that a second
start changes nothing. Nothing is printed.
"""

import base64
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

OWNERS = {  # the users of the images
    "gateway": 10001, "postgres": 0, "objects": 0, "orthanc": 0, "ohif": 101, "prometheus": 65534, "grafana": 472,
}  # fmt: skip
KEYS = {  # API keys of the gateway, by who has them
    "admin": ("segment", "push", "read", "admin"),
    "orthanc": ("push",),
    "watchdog": ("segment", "read"),
    "prometheus": (),  # may scrape, and nothing else
}
ORTHANC_PORT, GATEWAY = 8042, "http://gateway:8080"


def main(root: Path) -> None:
    if (root / "complete").exists():
        return
    database, store, pacs, grafana = (secrets.token_urlsafe(24) for _ in range(4))
    made = {name: api_key(name, roles) for name, roles in KEYS.items()}
    files = {
        "gateway/pgpass": f"*:*:*:tags:{database}\n",
        "gateway/s3-credentials": f"[default]\naws_access_key_id = tags\naws_secret_access_key = {store}\n",
        "gateway/api-keys": "".join(f"{line}\n" for _, line in made.values()),
        "gateway/admin-key": f"{made['admin'][0]}\n",
        "gateway/watchdog-key": made["watchdog"][0],
        "gateway/pacs-password": pacs,
        "postgres/password": database,
        "objects/environment": f"ROOT_ACCESS_KEY_ID=tags\nROOT_SECRET_ACCESS_KEY={store}\n",
        "orthanc/orthanc.json": json.dumps(orthanc(pacs, made["orthanc"][0]), indent=2),
        "ohif/nginx.conf": nginx(pacs),
        "prometheus/key": made["prometheus"][0],
        "grafana/password": grafana,
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
    for name, owner in OWNERS.items():
        for path in (*(root / name).iterdir(), root / name):
            os.chown(path, owner, owner)
    (root / "complete").touch()


def api_key(name: str, roles: tuple[str, ...]) -> tuple[str, str]:
    """The key, and its line for the file of hashes."""
    command = ["tags", "key", "new", name, *(word for role in roles for word in ("--role", role))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    key, line = done.stdout.splitlines()
    return key, line


def orthanc(password: str, key: str) -> dict:
    """A PACS that routes each CT series to us once it is stable, and finds its way back for storage commitment."""
    pushed = {
        "Url": f"{GATEWAY}/dicom-web/",
        "HttpHeaders": {"Authorization": f"Bearer {key}"},
        "HasDelete": False,
        "Timeout": 600,
    }
    return {
        "Name": "PACS",
        "Plugins": ["/usr/share/orthanc/plugins"],  # Orthanc reads this file alone, not what its image generates
        "StorageDirectory": "/var/lib/orthanc/db",
        "IndexDirectory": "/var/lib/orthanc/db",
        "HttpPort": ORTHANC_PORT,
        "DicomPort": 4242,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "RemoteAccessAllowed": True,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"tags": password},
        "StableAge": 15,
        "OverwriteInstances": False,
        "UnknownSopClassAccepted": True,
        "LuaScripts": ["/etc/orthanc/route.lua"],
        "DicomModalities": {"tags": ["TAGS", "gateway", 11112]},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "Servers": {"tags": pushed}},
    }


def nginx(password: str) -> str:
    """OHIF's web server, with the PACS behind the same address: the browser needs neither CORS nor its password."""
    basic = base64.b64encode(f"tags:{password}".encode()).decode()
    return f"""worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr warn;
events {{}}
http {{
  include /etc/nginx/mime.types;
  access_log off;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy;
  fastcgi_temp_path /tmp/fastcgi; uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server {{
    listen 8081;
    root /usr/share/nginx/html;
    location / {{ try_files $uri /index.html; }}
    location /dicom-web/ {{
      proxy_pass http://orthanc:{ORTHANC_PORT};
      proxy_set_header Host $http_host;
      proxy_set_header Authorization "Basic {basic}";
      proxy_buffering off;
      client_max_body_size 0;
    }}
  }}
}}
"""


if __name__ == "__main__":
    os.umask(0o077)
    main(Path(sys.argv[1]))
