"""Who asked for what, and where it went: DICOM audit messages (PS3.15 A.5) to a file and to syslog over TLS."""
