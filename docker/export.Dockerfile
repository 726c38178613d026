# The export stage, on NVIDIA's TensorRT image of Triton's own release (k8s/release/release.env), so that its plans run
# there: `bundle` makes a bundle of a checkpoint, `tensorrt` compiles a bundle's plans, once for each kind of GPU.
#   docker build -f docker/export.Dockerfile --build-arg TRITON_RELEASE=... -t localhost/tags-export:0.1.0_... .
ARG TRITON_RELEASE

FROM nvcr.io/nvidia/tensorrt:${TRITON_RELEASE} AS build
# CPU wheels: torch only traces and compares here.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# --system-site-packages: TensorRT's Python package is the image's own, never one from an index.
RUN python3 -m venv --system-site-packages /opt/export \
    && /opt/export/bin/pip install --no-cache-dir --disable-pip-version-check --extra-index-url "${TORCH_INDEX}" \
       torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 'numpy>=2' 'protobuf>=4' 'ml-dtypes>=0.4' \
       'safetensors>=0.5' 'typer>=0.15' 'rich>=13.9'

FROM nvcr.io/nvidia/tensorrt:${TRITON_RELEASE}
WORKDIR /src
COPY --from=build /opt/export /opt/export
COPY --chmod=0755 contract contract
COPY --chmod=0755 export export
ENV PATH=/opt/export/bin:$PATH \
    PYTHONPATH=/src \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp
USER 10001:10001
HEALTHCHECK NONE
ENTRYPOINT ["python3", "-m", "export"]
CMD ["--help"]
