"""DIMSE by pynetdicom, and the only place with it: C-STORE and C-ECHO in and out, storage commitment."""
