"""The gateway: DICOM in, prompts assembled, networks called, masks out. Never imports torch."""
