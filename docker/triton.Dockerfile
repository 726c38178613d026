# Triton for a machine without a GPU: NVIDIA's image, and ONNX Runtime for the bundle's Python-backend models. With a
# GPU, NVIDIA's image is used as it is: plans need nothing more. numpy 1: the stubs of older releases fail with 2, those of
# newer ones take both.
ARG TRITON_RELEASE

FROM nvcr.io/nvidia/tritonserver:${TRITON_RELEASE}
RUN python3 -m pip install --no-cache-dir --disable-pip-version-check --break-system-packages \
    --target /opt/stub onnxruntime==1.32.0 'numpy<2'
ENV PYTHONPATH=/opt/stub \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
USER 10001:10001
HEALTHCHECK --interval=30s --timeout=5s --start-period=180s \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
