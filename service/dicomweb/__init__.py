"""DICOMweb (PS3.18) without a web framework: what goes over the wire, and a client of other servers."""
