"""DICOM in and out: files -> Series -> Volume, Mask + Series -> SEG bytes.

The only place with pydicom and highdicom.
"""

from pydicom import config as _pydicom_config

from service.dicom.decoders import use_safe_decoders as _use_safe_decoders

# Values are checked here where they matter; pydicom's complaints about the others would quote them (patient data).
_pydicom_config.settings.reading_validation_mode = _pydicom_config.IGNORE
_pydicom_config.settings.writing_validation_mode = _pydicom_config.IGNORE
_use_safe_decoders()
